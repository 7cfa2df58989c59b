//! Parquet files as the hub has them: string columns and an integer label.

use crate::part::{Row, Rows};
use crate::schema::{Columns, Schema, clip};
use crate::{lines, pages};
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use sparta_plugin::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

/// Rows that are decoded at a time. A decoded text is a slice of its page, so a page that names one long text for every
/// row costs no more than the page.
const BATCH: usize = 256;

/// The rows of a file with the text and label columns of `schema`, decoded batch by batch.
///
/// # Errors
/// The file is not a readable parquet file, lacks the columns, or has a page that unpacks to too much. A null text or an
/// unreadable page is an error of the iterator, and its last item.
pub(crate) fn rows(path: &Path, schema: &Schema) -> Result<Rows, Error> {
    let file = open(path)?;
    let columns = schema.columns(|name| top_level(&file).any(|known| known == name)).ok_or_else(|| {
        let names: Vec<&str> = top_level(&file).collect();
        let (path, expected) = (path.display(), schema.expected_columns());
        Error(format!("{path}: expected the columns {expected}, got {}", clip(&names.join(", "))))
    })?;
    let checked = schema.check_single(&columns, |name| top_level(&file).any(|known| known == name));
    checked.map_err(|what| Error(format!("{}: {what}", path.display())))?;
    let leaves = Leaves::find(path, &file, &columns)?;
    check_pages(path, &file, &leaves)?;
    let batch = Vec::new().into_iter();
    Ok(Box::new(Reader { path: path.to_owned(), file, leaves, next_group: 0, group: None, batch, number: 0 }))
}

/// The number of rows, from the file's metadata.
///
/// # Errors
/// The file is not a readable parquet file.
pub(crate) fn count(path: &Path) -> Result<usize, Error> {
    Ok(usize::try_from(open(path)?.metadata().file_metadata().num_rows()).unwrap_or(0))
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, Error> {
    SerializedFileReader::new(lines::open(path)?).map_err(|e| broken(path, &e))
}

fn broken(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error(format!("{}: expected a complete parquet file, got: {error}; fetch it again", path.display()))
}

/// The names of a file's columns; one that holds structs or lists is one column.
fn top_level(file: &SerializedFileReader<File>) -> impl Iterator<Item = &str> {
    file.metadata().file_metadata().schema().get_fields().iter().map(|field| field.name())
}

/// Indices of the columns that are read, as the file numbers those that hold values.
struct Leaves {
    text: usize,
    pair: Option<usize>,
    label: Option<usize>,
}

impl Leaves {
    /// # Errors
    /// A column of texts that holds something else, a label that is neither a text nor a number.
    fn find(path: &Path, file: &SerializedFileReader<File>, columns: &Columns) -> Result<Self, Error> {
        let described = file.metadata().file_metadata().schema_descr();
        let leaf = |name: &str, what: &str, fits: fn(&ColumnDescriptor) -> bool| {
            let at = described.columns().iter().position(|column| column.path().parts() == [name]);
            let got = match at.map(|at| (at, described.column(at))) {
                Some((at, column)) if column.max_rep_level() == 0 && fits(&column) => return Ok(at),
                Some((_, column)) if column.max_rep_level() == 0 => kind(&column),
                _ => "structs or lists".to_owned(),
            };
            Err(Error(format!("{}: expected {what} in column `{name}`, got {got}", path.display())))
        };
        Ok(Leaves {
            text: leaf(columns.text, "strings", is_string)?,
            pair: columns.pair.map(|name| leaf(name, "strings", is_string)).transpose()?,
            label: columns.label.map(|name| leaf(name, "strings or numbers", is_label)).transpose()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        [Some(self.text), self.pair, self.label].into_iter().flatten()
    }
}

fn kind(column: &ColumnDescriptor) -> String {
    match column.logical_type_ref() {
        Some(logical) => format!("{} ({logical:?})", column.physical_type()),
        None => column.physical_type().to_string(),
    }
}

fn is_string(column: &ColumnDescriptor) -> bool {
    column.physical_type() == Physical::BYTE_ARRAY
        && match column.logical_type_ref() {
            Some(logical) => matches!(logical, LogicalType::String | LogicalType::Json),
            None => matches!(column.converted_type(), ConvertedType::UTF8 | ConvertedType::JSON),
        }
}

/// A text or a plain number: no date, no decimal.
fn is_label(column: &ColumnDescriptor) -> bool {
    use ConvertedType::*;
    let integer = match column.logical_type_ref() {
        Some(logical) => matches!(logical, LogicalType::Integer { .. }),
        None => matches!(
            column.converted_type(),
            NONE | INT_8 | INT_16 | INT_32 | INT_64 | UINT_8 | UINT_16 | UINT_32 | UINT_64
        ),
    };
    match column.physical_type() {
        Physical::INT32 | Physical::INT64 => integer,
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        _ => is_string(column),
    }
}

/// # Errors
/// A page of the columns that unpacks to too much, or lies outside of the file.
fn check_pages(path: &Path, file: &SerializedFileReader<File>, leaves: &Leaves) -> Result<(), Error> {
    let raw = lines::open(path)?;
    for group in file.metadata().row_groups() {
        for leaf in leaves.all() {
            let chunk = group.columns().get(leaf).ok_or_else(|| broken(path, &"a row group lacks a column"))?;
            pages::check(&raw, chunk).map_err(|e| broken(path, &e))?;
        }
    }
    Ok(())
}

/// A cell: its text, a number as its digits so that all formats share one way to read a label, or null.
type Cell = Option<ByteArray>;

/// The columns of one row group.
struct Group {
    text: ColumnReader,
    pair: Option<ColumnReader>,
    label: Option<ColumnReader>,
    /// Rows that are not decoded yet.
    left: usize,
}

struct Reader {
    path: PathBuf,
    file: SerializedFileReader<File>,
    leaves: Leaves,
    next_group: usize,
    group: Option<Group>,
    /// Decoded rows: text, pair, label.
    batch: IntoIter<(Cell, Cell, Cell)>,
    /// Of the row that was given out last, from 1.
    number: u64,
}

impl Iterator for Reader {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(cells) = self.batch.next() {
                return Some(self.row(cells));
            }
            match self.decode() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => {
                    (self.group, self.next_group) = (None, usize::MAX);
                    return Some(Err(broken(&self.path, &e)));
                }
            }
        }
    }
}

impl Reader {
    fn row(&mut self, (text, pair, label): (Cell, Cell, Cell)) -> Result<Row, Error> {
        self.number += 1;
        let (path, number) = (self.path.display(), self.number);
        let string = |cell: ByteArray| match std::str::from_utf8(cell.data()) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(Error(format!("{path}, row {number}: expected UTF-8, got: {e}"))),
        };
        let text = text.ok_or_else(|| Error(format!("{path}, row {number}: expected a text, got null")))?;
        if self.leaves.pair.is_some() && pair.is_none() {
            return Err(Error(format!("{path}, row {number}: expected a text, got null")));
        }
        let (pair, label) = (pair.map(string).transpose()?, label.map(string).transpose()?);
        Ok(Row { number, text: string(text)?, pair, label })
    }

    /// Decodes the next batch; false at the end of the file.
    fn decode(&mut self) -> Result<bool, ParquetError> {
        let group = match &mut self.group {
            Some(group) if group.left > 0 => group,
            group => {
                if self.next_group >= self.file.num_row_groups() {
                    return Ok(false);
                }
                let reader = self.file.get_row_group(self.next_group)?;
                self.next_group += 1;
                let column = |leaf: Option<usize>| leaf.map(|leaf| reader.get_column_reader(leaf)).transpose();
                let left = usize::try_from(reader.metadata().num_rows())
                    .map_err(|_| ParquetError::General("a row group has no valid number of rows".into()))?;
                let text = reader.get_column_reader(self.leaves.text)?;
                group.insert(Group { text, pair: column(self.leaves.pair)?, label: column(self.leaves.label)?, left })
            }
        };
        let rows = group.left.min(BATCH);
        group.left -= rows;
        let text = cells(&mut group.text, rows)?;
        let optional = |column: &mut Option<ColumnReader>| match column {
            Some(column) => cells(column, rows),
            None => Ok(vec![None; rows]),
        };
        let (pair, label) = (optional(&mut group.pair)?, optional(&mut group.label)?);
        let batch: Vec<_> =
            text.into_iter().zip(pair).zip(label).map(|((text, pair), label)| (text, pair, label)).collect();
        self.batch = batch.into_iter();
        Ok(true)
    }
}

/// The next `rows` cells of a column.
fn cells(column: &mut ColumnReader, rows: usize) -> Result<Vec<Cell>, ParquetError> {
    fn digits(value: impl ToString) -> ByteArray {
        value.to_string().into_bytes().into()
    }
    match column {
        ColumnReader::ByteArrayColumnReader(column) => read(column, rows, |text| text),
        ColumnReader::Int32ColumnReader(column) => read(column, rows, digits),
        ColumnReader::Int64ColumnReader(column) => read(column, rows, digits),
        ColumnReader::BoolColumnReader(column) => read(column, rows, digits),
        ColumnReader::FloatColumnReader(column) => read(column, rows, digits),
        ColumnReader::DoubleColumnReader(column) => read(column, rows, digits),
        _ => Err(ParquetError::General("a column of another type than the schema says".into())),
    }
}

fn read<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
    rows: usize,
    text: impl Fn(T::T) -> ByteArray,
) -> Result<Vec<Cell>, ParquetError> {
    let (mut cells, mut levels, mut values) = (Vec::with_capacity(rows), Vec::new(), Vec::new());
    while cells.len() < rows {
        levels.clear();
        let (read, ..) = column.read_records(rows - cells.len(), Some(&mut levels), None, &mut values)?;
        if read == 0 {
            return Err(ParquetError::General(format!("a column ends {} rows early", rows - cells.len())));
        }
        // A column without nulls has no levels; in the others a null's level is 0, as nothing is nested.
        let mut present = values.drain(..).map(&text);
        match levels.is_empty() {
            true => cells.extend(present.map(Some)),
            false => cells.extend(levels.iter().map(|&level| if level > 0 { present.next() } else { None })),
        }
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::{PAIR, SINGLE};
    use crate::testing::{Column, parquet};
    use ::parquet::file::properties::WriterProperties;

    /// Two rows a row group.
    fn write(path: &Path, columns: &[(&str, Column)]) {
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
        std::fs::write(path, parquet(columns, properties)).unwrap();
    }

    fn read(columns: &[(&str, Column)], schema: &Schema) -> Result<Vec<Row>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        write(&path, columns);
        assert!(count(&path).is_ok_and(|count| count > 0));
        rows(&path, schema)?.collect()
    }

    #[test]
    fn rows_come_in_order_over_row_groups_and_batches() {
        let n = 600;
        let texts: Vec<String> = (0..n).map(|i| format!("text {i} ")).collect();
        let label = || Column::integers((0..n).map(|i| i % 2));
        for rows_of_a_group in [2, 1000] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f.parquet");
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_of_a_group)).build();
            let columns = [("label", label()), ("idx", label()), ("text", Column::texts(&texts))];
            std::fs::write(&path, parquet(&columns, properties)).unwrap();
            let rows: Vec<Row> = rows(&path, &SINGLE).unwrap().map(Result::unwrap).collect();
            assert_eq!(rows.len(), n as usize);
            for (i, row) in rows.iter().enumerate() {
                let label = Some((i % 2).to_string());
                assert_eq!(*row, Row { number: i as u64 + 1, text: texts[i].clone(), pair: None, label });
            }
        }
    }

    #[test]
    fn pairs_and_missing_labels_are_read() {
        let columns = [("question2", Column::texts(["b", "d"])), ("question1", Column::texts(["a", "c"]))];
        let rows = read(&columns, &PAIR).unwrap();
        assert_eq!(rows[1], Row { number: 2, text: "c".into(), pair: Some("d".into()), label: None });
    }

    #[test]
    fn wrong_columns_nulls_and_broken_files_are_errors() {
        let numbers = || Column::integers([1, 0]);
        let columns = read(&[("a", numbers())], &SINGLE).unwrap_err().0;
        assert!(
            columns.ends_with("f.parquet: expected the columns `sentence` or `text`, with `label`, got a"),
            "{columns}"
        );
        let kind = read(&[("text", numbers())], &SINGLE).unwrap_err().0;
        assert!(kind.ends_with("expected strings in column `text`, got INT64"), "{kind}");
        let text = || Column::Texts(vec![Some("a".into()), None]);
        let null = read(&[("text", text()), ("label", numbers())], &SINGLE).unwrap_err().0;
        assert!(null.ends_with("f.parquet, row 2: expected a text, got null"), "{null}");
        let bytes = Column::Texts(vec![Some(vec![0xff].into()), None]);
        let not_text = read(&[("text", bytes), ("label", numbers())], &SINGLE).unwrap_err().0;
        assert!(not_text.contains("f.parquet, row 1: expected UTF-8"), "{not_text}");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        write(&path, &[("text", text()), ("label", numbers())]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let cut = rows(&path, &SINGLE).err().unwrap().0;
        assert!(cut.contains("f.parquet: expected a complete parquet file, got: "), "{cut}");
    }
}
