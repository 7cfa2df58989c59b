//! Parquet files as the hub has them: string columns and an integer label.

use crate::part::{Row, Rows};
use crate::schema::{Schema, clip};
use crate::{lines, pages};
use arrow::array::{Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sparta_plugin::Error;
use std::fs::File;
use std::path::Path;

/// Rows that are decoded at a time, at most.
const BATCH: usize = 256;
/// Bytes of text that are decoded at a time. A page can name one long text for every row.
const BATCH_BYTES: usize = 256 << 20;

/// The rows of a file with the text and label columns of `schema`, decoded batch by batch.
///
/// # Errors
/// The file is not a readable parquet file or lacks the columns. A null text or an unreadable page is an error of the
/// iterator.
pub(crate) fn rows(path: &Path, schema: &Schema) -> Result<Rows, Error> {
    let builder = open(path)?;
    let fields = builder.schema().clone();
    let columns = schema.columns(|name| fields.index_of(name).is_ok()).ok_or_else(|| {
        let names: Vec<&str> = fields.fields().iter().map(|field| field.name().as_str()).collect();
        let (path, expected) = (path.display(), schema.expected_columns());
        Error(format!("{path}: expected the columns {expected}, got {}", clip(&names.join(", "))))
    })?;
    for name in [Some(columns.text), columns.pair].into_iter().flatten() {
        let kind = fields.field_with_name(name).map(|field| field.data_type());
        if !kind.as_ref().is_ok_and(|kind| is_string(kind)) {
            let (path, kind) = (path.display(), kind.map(DataType::to_string).unwrap_or_default());
            return Err(Error(format!("{path}: expected strings in column `{name}`, got {kind}")));
        }
    }
    let used = [Some(columns.text), columns.pair, columns.label];
    let mask = ProjectionMask::columns(builder.parquet_schema(), used.into_iter().flatten());
    let batch = batch_rows(path, &builder, &mask)?;
    let reader = builder.with_projection(mask).with_batch_size(batch).build().map_err(|e| broken(path, &e))?;
    let path = path.to_owned();
    let mut before = 0;
    Ok(Box::new(reader.flat_map(move |batch| {
        let decode = || {
            let batch = batch.map_err(|e| broken(&path, &e))?;
            let text = strings(&path, &batch, columns.text)?;
            let pair = columns.pair.map(|name| strings(&path, &batch, name)).transpose()?;
            let label = columns.label.map(|name| strings(&path, &batch, name)).transpose()?;
            let cell = |column: &StringArray, i: usize| column.is_valid(i).then(|| column.value(i).to_owned());
            let row = |i: usize| {
                let number = before + i as u64 + 1;
                let null = || Error(format!("{}, row {number}: expected a text, got null", path.display()));
                let pair = pair.as_ref().map(|pair| cell(pair, i).ok_or_else(null)).transpose()?;
                let label = label.as_ref().and_then(|label| cell(label, i));
                Ok(Row { number, text: cell(&text, i).ok_or_else(null)?, pair, label })
            };
            Ok((0..batch.num_rows()).map(row).collect::<Vec<_>>())
        };
        let rows = decode().unwrap_or_else(|e| vec![Err(e)]);
        before += rows.len() as u64;
        rows
    })))
}

/// How many rows to decode at a time: no text is longer than the page that holds it.
fn batch_rows(
    path: &Path,
    builder: &ParquetRecordBatchReaderBuilder<File>,
    mask: &ProjectionMask,
) -> Result<usize, Error> {
    let file = lines::open(path)?;
    let mut largest = 1;
    for group in builder.metadata().row_groups() {
        for (_, chunk) in group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf)) {
            largest = largest.max(pages::largest_page(&file, chunk).map_err(|e| broken(path, &e))?);
        }
    }
    Ok((BATCH_BYTES / largest).clamp(1, BATCH))
}

/// The number of rows, from the file's metadata.
///
/// # Errors
/// The file is not a readable parquet file.
pub(crate) fn count(path: &Path) -> Result<usize, Error> {
    Ok(usize::try_from(open(path)?.metadata().file_metadata().num_rows()).unwrap_or(0))
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, Error> {
    ParquetRecordBatchReaderBuilder::try_new(lines::open(path)?).map_err(|e| broken(path, &e))
}

fn broken(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error(format!("{}: expected a complete parquet file, got: {error}; fetch it again", path.display()))
}

fn is_string(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_string(value),
        _ => false,
    }
}

/// A column as strings: integer labels become their digits, so that all formats share one way to read a label.
fn strings(path: &Path, batch: &RecordBatch, name: &str) -> Result<StringArray, Error> {
    let column = batch.column_by_name(name).and_then(|column| cast(column, &DataType::Utf8).ok());
    let strings = column.as_ref().and_then(|column| column.as_any().downcast_ref::<StringArray>());
    strings
        .cloned()
        .ok_or_else(|| Error(format!("{}: expected strings or integers in column `{name}`", path.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::schema::tests::{PAIR, SINGLE};
    use arrow::array::{ArrayRef, Int64Array, LargeStringArray};
    use parquet::arrow::ArrowWriter;
    use std::sync::Arc;

    /// Writes columns to a parquet file, two rows a row group.
    pub(crate) fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
        for start in (0..batch.num_rows()).step_by(2) {
            writer.write(&batch.slice(start, 2.min(batch.num_rows() - start))).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
    }

    fn read(columns: Vec<(&str, ArrayRef)>, schema: &Schema) -> Result<Vec<Row>, Error> {
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
        let labels: Vec<i64> = (0..n).map(|i| i % 2).collect();
        let label: ArrayRef = Arc::new(Int64Array::from(labels));
        let text: ArrayRef = Arc::new(LargeStringArray::from(texts.clone()));
        let rows = read(vec![("label", label.clone()), ("idx", label), ("text", text)], &SINGLE).unwrap();
        assert_eq!(rows.len(), n as usize);
        for (i, row) in rows.iter().enumerate() {
            let label = Some((i % 2).to_string());
            assert_eq!(*row, Row { number: i as u64 + 1, text: texts[i].clone(), pair: None, label });
        }
    }

    #[test]
    fn pairs_and_missing_labels_are_read() {
        let text = |texts: [&str; 2]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let rows = read(vec![("question2", text(["b", "d"])), ("question1", text(["a", "c"]))], &PAIR).unwrap();
        assert_eq!(rows[1], Row { number: 2, text: "c".into(), pair: Some("d".into()), label: None });
    }

    #[test]
    fn wrong_columns_nulls_and_broken_files_are_errors() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 0]));
        let columns = read(vec![("a", numbers.clone())], &SINGLE).unwrap_err().0;
        assert!(
            columns.ends_with("f.parquet: expected the columns `sentence` or `text`, with `label`, got a"),
            "{columns}"
        );
        let kind = read(vec![("text", numbers.clone())], &SINGLE).unwrap_err().0;
        assert!(kind.ends_with("expected strings in column `text`, got Int64"), "{kind}");
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        let null = read(vec![("text", text.clone()), ("label", numbers.clone())], &SINGLE).unwrap_err().0;
        assert!(null.ends_with("f.parquet, row 2: expected a text, got null"), "{null}");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        write(&path, vec![("text", text), ("label", numbers)]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let cut = rows(&path, &SINGLE).err().unwrap().0;
        assert!(cut.contains("f.parquet: expected a complete parquet file, got: "), "{cut}");
    }
}
