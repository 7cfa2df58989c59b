//! Parquet files for tests.

use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use std::sync::Arc;

/// The cells of a column.
pub enum Column {
    /// Strings or nulls.
    Texts(Vec<Option<ByteArray>>),
    Integers(Vec<i64>),
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
        }
    }

    fn kind(&self, name: &str) -> Type {
        let kind = match self {
            Column::Texts(_) => Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
                .with_repetition(Repetition::OPTIONAL)
                .with_converted_type(ConvertedType::UTF8),
            Column::Integers(_) => {
                Type::primitive_type_builder(name, Physical::INT64).with_repetition(Repetition::REQUIRED)
            }
        };
        kind.build().expect("a valid column")
    }
}

/// The bytes of a parquet file.
///
/// # Panics
/// The columns differ in length, or the properties do not suit them.
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
                Column::Texts(cells) => {
                    let levels: Vec<i16> = cells[range.clone()].iter().map(|cell| i16::from(cell.is_some())).collect();
                    let values: Vec<ByteArray> = cells[range.clone()].iter().flatten().cloned().collect();
                    out.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)
                }
                Column::Integers(cells) => out.typed::<Int64Type>().write_batch(&cells[range.clone()], None, None),
            }
            .expect("memory is written");
            out.close().expect("memory is written");
        }
        group.close().expect("memory is written");
    }
    writer.close().expect("memory is written");
    file
}
