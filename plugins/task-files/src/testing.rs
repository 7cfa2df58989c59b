//! Writes files for tests.

use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Writes files, given by their paths below `dir`, with the folders they are in.
///
/// # Panics
/// The system refuses.
pub fn write(dir: &Path, files: &[(&str, impl AsRef<[u8]>)]) {
    for (name, content) in files {
        let path = dir.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all).expect("a folder");
        fs::write(path, content).expect("a file");
    }
}

/// The values of a column.
pub enum Column {
    /// Strings or nulls.
    Texts(Vec<Option<ByteArray>>),
    Integers(Vec<i64>),
    /// Lists of strings, all of which may be null.
    Lists(Vec<Option<Vec<Option<String>>>>),
}

impl Column {
    pub fn texts(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Column {
        Column::Texts(texts.into_iter().map(|text| Some(text.as_ref().into())).collect())
    }

    pub fn integers(values: impl IntoIterator<Item = i64>) -> Column {
        Column::Integers(values.into_iter().collect())
    }

    fn len(&self) -> usize {
        match self {
            Column::Texts(cells) => cells.len(),
            Column::Integers(cells) => cells.len(),
            Column::Lists(cells) => cells.len(),
        }
    }

    fn kind(&self, name: &str) -> Type {
        let text = |name| {
            Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
                .with_repetition(Repetition::OPTIONAL)
                .with_converted_type(ConvertedType::UTF8)
        };
        let kind = match self {
            Column::Texts(_) => text(name).build(),
            Column::Integers(_) => {
                let integer = Type::primitive_type_builder(name, Physical::INT64);
                integer.with_repetition(Repetition::REQUIRED).build()
            }
            Column::Lists(_) => {
                let element = Arc::new(text("element").build().expect("a valid column"));
                let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
                let list = Arc::new(list.with_fields(vec![element]).build().expect("a valid group"));
                let outer = Type::group_type_builder(name).with_repetition(Repetition::OPTIONAL);
                outer.with_converted_type(ConvertedType::LIST).with_fields(vec![list]).build()
            }
        };
        kind.expect("a valid column")
    }

    /// The values of some rows, with their definition and repetition levels.
    fn texts_with_levels(&self, range: Range<usize>) -> (Vec<ByteArray>, Vec<i16>, Vec<i16>) {
        let (mut values, mut definitions, mut repetitions) = (vec![], vec![], vec![]);
        let mut entry = |value: Option<ByteArray>, definition, repetition| {
            values.extend(value);
            definitions.push(definition);
            repetitions.push(repetition);
        };
        match self {
            Column::Texts(cells) => {
                cells[range].iter().for_each(|cell| entry(cell.clone(), i16::from(cell.is_some()), 0));
            }
            Column::Integers(_) => {}
            Column::Lists(lists) => {
                for list in &lists[range] {
                    match list.as_deref() {
                        None => entry(None, 0, 0),
                        Some([]) => entry(None, 1, 0),
                        Some(items) => items.iter().enumerate().for_each(|(i, item)| {
                            let value = item.as_deref().map(ByteArray::from);
                            entry(value, 2 + i16::from(item.is_some()), i16::from(i > 0));
                        }),
                    }
                }
            }
        }
        (values, definitions, repetitions)
    }
}

/// The bytes of a parquet file.
///
/// # Panics
/// The columns differ in length, or the properties do not fit them.
pub fn parquet(columns: &[(&str, Column)], properties: WriterProperties) -> Vec<u8> {
    let rows = columns.first().map_or(0, |(_, column)| column.len());
    assert!(columns.iter().all(|(_, column)| column.len() == rows), "columns of one length");
    let fields = columns.iter().map(|(name, column)| Arc::new(column.kind(name))).collect();
    let schema = Type::group_type_builder("schema").with_fields(fields).build().expect("a valid schema");
    let rows_of_a_group = properties.max_row_group_row_count().unwrap_or(rows).max(1);
    let mut file = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut file, Arc::new(schema), Arc::new(properties)).expect("a valid schema");
    for start in (0..rows).step_by(rows_of_a_group) {
        let range = start..rows.min(start + rows_of_a_group);
        let mut group = writer.next_row_group().expect("memory is written");
        for (_, column) in columns {
            let mut out = group.next_column().expect("memory is written").expect("a column for each");
            match column {
                Column::Integers(cells) => out.typed::<Int64Type>().write_batch(&cells[range.clone()], None, None),
                _ => {
                    let (values, definitions, repetitions) = column.texts_with_levels(range.clone());
                    out.typed::<ByteArrayType>().write_batch(&values, Some(&definitions), Some(&repetitions))
                }
            }
            .expect("memory is written");
            out.close().expect("memory is written");
        }
        group.close().expect("memory is written");
    }
    writer.close().expect("memory is written");
    file
}
