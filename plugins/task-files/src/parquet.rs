//! Parquet files as the hub has them: columns of texts, numbers, lists and structs of them.

use crate::pages;
use crate::table::{Reading, Record, Table, check_header};
use ::parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::schema::types::Type;
use serde_json::{Map, Value};
use sparta_files::open_on_disk;
use sparta_plugin::Error;
use std::fs::File;
use std::path::Path;

/// Rows that are decoded at a time. A decoded text is a slice of its page, so a page that names one long text for every
/// row costs no more than the page.
const BATCH: usize = 256;
/// The deepest nesting of columns.
const DEPTH: usize = 8;
/// The most values of a list.
const LONGEST_LIST: usize = 1 << 16;

/// The rows of a file, decoded batch by batch. An unreadable page is an error of the iterator, and its last item.
///
/// # Errors
/// The file is not a readable parquet file; a wanted column that occurs twice, is nested too deeply, or holds
/// something other than texts, numbers, lists and structs; a page that unpacks to too much.
pub(crate) fn table(path: &Path, reading: Reading) -> Result<Table, Error> {
    let file = open(path)?;
    let name = path.display().to_string();
    let fields = file.metadata().file_metadata().schema().get_fields();
    let columns: Vec<String> = fields.iter().map(|field| field.name().to_owned()).collect();
    check_header(&name, &columns, reading)?;
    let mut schema = Schema { leaf: 0, leaves: Vec::new() };
    let mut wanted = Vec::new();
    for field in fields {
        let found = reading.wants(field.name()).then(|| schema.node(field, DEPTH));
        match found {
            Some(node) => {
                let node = node.map_err(|got| {
                    Error(format!("{name}: expected strings, numbers or lists in column `{}`, got {got}", field.name()))
                })?;
                wanted.push((field.name().to_owned(), node));
            }
            None => schema.leaf += leaves(field),
        }
    }
    check_pages(path, &file, &schema.leaves)?;
    let mut reader =
        Reader { name, file, columns: wanted, leaves: schema.leaves, next_group: 0, left: 0, decoded: 0, number: 0 };
    Ok(Table { columns: Some(columns), records: Box::new(std::iter::from_fn(move || reader.next().transpose())) })
}

/// The number of rows, from the file's metadata.
///
/// # Errors
/// The file is not a readable parquet file.
pub(crate) fn count(path: &Path) -> Result<usize, Error> {
    Ok(usize::try_from(open(path)?.metadata().file_metadata().num_rows()).unwrap_or(0))
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, Error> {
    SerializedFileReader::new(open_file(path)?).map_err(|e| broken(&path.display(), &e))
}

fn open_file(path: &Path) -> Result<File, Error> {
    open_on_disk(path).map_err(|e| Error(format!("{}: cannot be opened: {e}", path.display())))
}

fn broken(name: &dyn std::fmt::Display, error: &dyn std::fmt::Display) -> Error {
    Error(format!("{name}: expected a complete parquet file, got: {error}; fetch it again"))
}

/// # Errors
/// A page of the columns that unpacks to too much, or lies outside of the file.
fn check_pages(path: &Path, file: &SerializedFileReader<File>, leaves: &[Leaf]) -> Result<(), Error> {
    let raw = open_file(path)?;
    for group in file.metadata().row_groups() {
        for leaf in leaves {
            let chunk = group
                .columns()
                .get(leaf.column)
                .ok_or_else(|| broken(&path.display(), &"a row group lacks a column"))?;
            pages::check(&raw, chunk).map_err(|e| broken(&path.display(), &e))?;
        }
    }
    Ok(())
}

/// The columns of values below a field.
fn leaves(field: &Type) -> usize {
    match field.is_group() {
        true => field.get_fields().iter().map(|field| leaves(field)).sum(),
        false => 1,
    }
}

/// A field of the schema that is read.
struct Node {
    repetition: Repetition,
    shape: Shape,
}

enum Shape {
    /// A position among the leaves that are read.
    Leaf(usize),
    Group(Vec<(String, Node)>),
    /// A group that the format puts around the repeated values of a list.
    List(Box<Node>),
}

/// Goes through the schema in the order in which the file numbers its columns of values.
struct Schema {
    /// The number of the next one.
    leaf: usize,
    leaves: Vec<Leaf>,
}

impl Schema {
    /// # Errors
    /// What the field holds, if that cannot be read.
    fn node(&mut self, field: &Type, depth: usize) -> Result<Node, String> {
        let depth = depth.checked_sub(1).ok_or("columns nested too deeply")?;
        let info = field.get_basic_info();
        let repetition = if info.has_repetition() { info.repetition() } else { Repetition::REQUIRED };
        if !field.is_group() {
            if !is_value(field) {
                return Err(kind(field));
            }
            let leaf = Leaf { column: self.leaf, ..Leaf::default() };
            self.leaf += 1;
            self.leaves.push(leaf);
            return Ok(Node { repetition, shape: Shape::Leaf(self.leaves.len() - 1) });
        }
        let fields = field.get_fields();
        if fields.is_empty() {
            return Err("an empty struct".into());
        }
        let list = info.logical_type_ref() == Some(&LogicalType::List) || info.converted_type() == ConvertedType::LIST;
        let mut nodes = Vec::new();
        for field in fields {
            nodes.push((field.name().to_owned(), self.node(field, depth)?));
        }
        match nodes.pop() {
            Some((_, repeated)) if list && nodes.is_empty() && repeated.repetition == Repetition::REPEATED => {
                Ok(Node { repetition, shape: Shape::List(Box::new(repeated)) })
            }
            last => {
                nodes.extend(last);
                Ok(Node { repetition, shape: Shape::Group(nodes) })
            }
        }
    }
}

fn kind(field: &Type) -> String {
    match field.get_basic_info().logical_type_ref() {
        Some(logical) => format!("{} ({logical:?})", field.get_physical_type()),
        None => field.get_physical_type().to_string(),
    }
}

/// A text or a plain number: no date, no decimal. A column of nothing but nulls is one of unknown numbers.
fn is_value(field: &Type) -> bool {
    use ConvertedType::*;
    let (logical, converted) = (field.get_basic_info().logical_type_ref(), field.get_basic_info().converted_type());
    let integer = match logical {
        Some(logical) => matches!(logical, LogicalType::Integer { .. } | LogicalType::Unknown),
        None => matches!(converted, NONE | INT_8 | INT_16 | INT_32 | INT_64 | UINT_8 | UINT_16 | UINT_32 | UINT_64),
    };
    match field.get_physical_type() {
        Physical::INT32 | Physical::INT64 => integer,
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::BYTE_ARRAY => match logical {
            Some(logical) => matches!(logical, LogicalType::String | LogicalType::Json | LogicalType::Enum),
            None => matches!(converted, UTF8 | JSON | ENUM),
        },
        _ => false,
    }
}

struct Reader {
    name: String,
    file: SerializedFileReader<File>,
    columns: Vec<(String, Node)>,
    leaves: Vec<Leaf>,
    next_group: usize,
    /// Rows of the group that are not decoded yet.
    left: usize,
    /// Rows that are decoded and not given out.
    decoded: usize,
    /// Of the row that was given out last, from 1.
    number: u64,
}

impl Reader {
    fn next(&mut self) -> Result<Option<Record>, Error> {
        while self.decoded == 0 {
            match self.decode() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(e) => {
                    (self.left, self.next_group) = (0, usize::MAX);
                    return Err(broken(&self.name, &e));
                }
            }
        }
        self.decoded -= 1;
        self.number += 1;
        let mut values = Map::new();
        for (name, node) in &self.columns {
            let value = node.value(&mut self.leaves, 0, 0);
            let value =
                value.map_err(|e| Error(format!("{}, row {}: column `{name}`: {e}", self.name, self.number)))?;
            values.insert(name.clone(), value);
        }
        Ok(Some(Record { number: self.number, values }))
    }

    /// Decodes the next batch; false at the end of the file.
    fn decode(&mut self) -> Result<bool, ParquetError> {
        if self.left == 0 {
            if self.next_group >= self.file.num_row_groups() {
                return Ok(false);
            }
            let group = self.file.get_row_group(self.next_group)?;
            self.next_group += 1;
            for leaf in &mut self.leaves {
                leaf.reader = Some(group.get_column_reader(leaf.column)?);
            }
            self.left = usize::try_from(group.metadata().num_rows())
                .map_err(|_| ParquetError::General("a row group has no valid number of rows".into()))?;
        }
        let rows = self.left.min(BATCH);
        self.left -= rows;
        self.leaves.iter_mut().try_for_each(|leaf| leaf.decode(rows))?;
        self.decoded = rows;
        Ok(true)
    }
}

impl Node {
    /// The next value of this field, whose parents are defined and repeated up to these levels (the record shredding of
    /// Dremel, Melnik et al. 2010).
    fn value(&self, leaves: &mut [Leaf], definition: i16, repetition: i16) -> Result<Value, String> {
        match self.repetition {
            Repetition::REQUIRED => self.present(leaves, definition, repetition),
            Repetition::OPTIONAL => match self.first(leaves).definition()? > definition {
                true => self.present(leaves, definition + 1, repetition),
                false => self.absent(leaves).map(|()| Value::Null),
            },
            Repetition::REPEATED => {
                let mut items = Vec::new();
                if self.first(leaves).definition()? <= definition {
                    self.absent(leaves)?;
                    return Ok(Value::Array(items));
                }
                loop {
                    if items.len() == LONGEST_LIST {
                        return Err(format!("a list of more than {LONGEST_LIST} values"));
                    }
                    items.push(self.present(leaves, definition + 1, repetition + 1)?);
                    if self.first(leaves).repetition() <= repetition {
                        return Ok(Value::Array(items));
                    }
                }
            }
        }
    }

    /// A value that is not null and not an empty list.
    fn present(&self, leaves: &mut [Leaf], definition: i16, repetition: i16) -> Result<Value, String> {
        match &self.shape {
            Shape::Leaf(leaf) => leaves[*leaf].take(),
            Shape::List(repeated) => {
                let list = repeated.value(leaves, definition, repetition)?;
                // Writers put each item into a struct with one field, so that it may be null.
                match (&repeated.shape, list) {
                    (Shape::Group(fields), Value::Array(items)) if fields.len() == 1 => {
                        let item = |item: Value| match item {
                            Value::Object(fields) => fields.into_iter().next().map_or(Value::Null, |(_, value)| value),
                            other => other,
                        };
                        Ok(Value::Array(items.into_iter().map(item).collect()))
                    }
                    (_, list) => Ok(list),
                }
            }
            Shape::Group(fields) => {
                let mut values = Map::new();
                for (name, field) in fields {
                    values.insert(name.clone(), field.value(leaves, definition, repetition)?);
                }
                Ok(Value::Object(values))
            }
        }
    }

    /// Skips the entry that marks this field as absent in each column below it.
    fn absent(&self, leaves: &mut [Leaf]) -> Result<(), String> {
        match &self.shape {
            Shape::Leaf(leaf) => leaves[*leaf].pass(),
            Shape::List(repeated) => repeated.absent(leaves),
            Shape::Group(fields) => fields.iter().try_for_each(|(_, field)| field.absent(leaves)),
        }
    }

    /// The first column of values below this field.
    fn first<'a>(&self, leaves: &'a [Leaf]) -> &'a Leaf {
        match &self.shape {
            Shape::Leaf(leaf) => &leaves[*leaf],
            Shape::List(repeated) => repeated.first(leaves),
            // Groups have fields.
            Shape::Group(fields) => fields[0].1.first(leaves),
        }
    }
}

/// A column of values, with a batch of it.
#[derive(Default)]
struct Leaf {
    /// As the file numbers those that hold values.
    column: usize,
    reader: Option<ColumnReader>,
    /// One for each entry; none if all are equal.
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    /// The values of the entries that have one, from `next_value` on still to be given out.
    values: Vec<Cell>,
    next_value: usize,
    /// Entries, and the one that is next.
    entries: usize,
    entry: usize,
}

enum Cell {
    Text(ByteArray),
    Number(Value),
}

impl Leaf {
    fn decode(&mut self, rows: usize) -> Result<(), ParquetError> {
        let Some(mut reader) = self.reader.take() else { return Ok(()) };
        self.values.clear();
        self.definitions.clear();
        self.repetitions.clear();
        (self.entries, self.entry, self.next_value) = (0, 0, 0);
        match &mut reader {
            ColumnReader::ByteArrayColumnReader(column) => self.read(column, rows, Cell::Text),
            ColumnReader::Int32ColumnReader(column) => self.read(column, rows, |n| Cell::Number(n.into())),
            ColumnReader::Int64ColumnReader(column) => self.read(column, rows, |n| Cell::Number(n.into())),
            ColumnReader::BoolColumnReader(column) => self.read(column, rows, |b| Cell::Number(b.into())),
            ColumnReader::FloatColumnReader(column) => self.read(column, rows, |x| Cell::Number(decimal(x))),
            ColumnReader::DoubleColumnReader(column) => self.read(column, rows, |x| Cell::Number(x.into())),
            _ => Err(ParquetError::General("a column whose type differs from the schema's".into())),
        }?;
        self.reader = Some(reader);
        Ok(())
    }

    fn read<T: DataType>(
        &mut self,
        column: &mut ColumnReaderImpl<T>,
        rows: usize,
        cell: impl Fn(T::T) -> Cell,
    ) -> Result<(), ParquetError> {
        let (mut done, mut values) = (0, Vec::new());
        while done < rows {
            let (definitions, repetitions) = (Some(&mut self.definitions), Some(&mut self.repetitions));
            let (records, _, levels) = column.read_records(rows - done, definitions, repetitions, &mut values)?;
            if records == 0 {
                return Err(ParquetError::General(format!("a column ends {} rows early", rows - done)));
            }
            done += records;
            self.entries += levels;
        }
        self.values = values.into_iter().map(cell).collect();
        Ok(())
    }

    /// The definition level of the next entry; the highest if the column has none.
    fn definition(&self) -> Result<i16, String> {
        match self.definitions.is_empty() {
            true if self.entry < self.entries => Ok(i16::MAX),
            _ => self.definitions.get(self.entry).copied().ok_or_else(|| "it ends early".into()),
        }
    }

    /// The repetition level of the next entry; 0 if there is none, as at the next row.
    fn repetition(&self) -> i16 {
        self.repetitions.get(self.entry).copied().unwrap_or(0)
    }

    fn pass(&mut self) -> Result<(), String> {
        self.definition()?;
        self.entry += 1;
        Ok(())
    }

    fn take(&mut self) -> Result<Value, String> {
        self.pass()?;
        let cell = self.values.get(self.next_value).ok_or("it has fewer values than it declares")?;
        self.next_value += 1;
        match cell {
            Cell::Number(value) => Ok(value.clone()),
            Cell::Text(bytes) => match std::str::from_utf8(bytes.data()) {
                Ok(text) => Ok(text.into()),
                Err(e) => Err(format!("expected UTF-8, got: {e}")),
            },
        }
    }
}

/// The shortest decimal number that is this float: 0.1 and not 0.10000000149.
fn decimal(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Column, parquet};
    use ::parquet::data_type::{ByteArrayType, Int32Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use serde_json::json;
    use std::sync::Arc;

    fn place(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn read_bytes(bytes: &[u8], reading: Reading) -> Result<Vec<Value>, String> {
        let (_dir, path) = place(bytes);
        let records = table(&path, reading).map_err(|e| e.0)?.records;
        records.map(|record| record.map(|r| Value::Object(r.values))).collect::<Result<_, _>>().map_err(|e| e.0)
    }

    /// Two rows per row group.
    fn read(columns: &[(&str, Column)]) -> Result<Vec<Value>, String> {
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
        read_bytes(&parquet(columns, properties), Reading::default())
    }

    #[test]
    fn rows_come_in_order_over_row_groups_and_batches() {
        let n = 600;
        let texts: Vec<String> = (0..n).map(|i| format!("text {i} ")).collect();
        let label = || Column::integers((0..n).map(|i| i % 2));
        let wanted: &dyn Fn(&str) -> bool = &|name| name != "idx";
        for rows_of_a_group in [2, 1000] {
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_of_a_group)).build();
            let bytes = parquet(&[("label", label()), ("idx", label()), ("text", Column::texts(&texts))], properties);
            let rows = read_bytes(&bytes, Reading { wanted: Some(wanted), ..Reading::default() }).unwrap();
            let expected: Vec<Value> = (0..n as usize).map(|i| json!({"label": i % 2, "text": texts[i]})).collect();
            assert_eq!(rows, expected);
            let (_dir, path) = place(&bytes);
            assert_eq!(count(&path), Ok(n as usize));
        }
    }

    #[test]
    fn lists_have_nulls_and_may_be_empty() {
        let some = |texts: &[&str]| Some(texts.iter().map(|text| Some(text.to_string())).collect::<Vec<_>>());
        let lists = Column::Lists(vec![some(&["a", "b"]), None, some(&[]), Some(vec![None, Some("c".into())])]);
        let rows = read(&[("n", Column::integers(0..4)), ("tags", lists)]).unwrap();
        let tags: Vec<&Value> = rows.iter().map(|row| &row["tags"]).collect();
        assert_eq!(json!(tags), json!([["a", "b"], null, [], [null, "c"]]));
    }

    /// Two conversations, one of them without turns, written level by level.
    #[test]
    fn lists_of_structs_are_arrays_of_objects() {
        let schema = "message schema {
            optional group messages (LIST) { repeated group list { optional group element {
                optional binary role (UTF8); required binary content (UTF8); } } }
            optional group meta { required int32 n; }
            repeated binary tag (UTF8);
        }";
        let mut bytes = Vec::new();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let texts = |texts: &[&str]| texts.iter().map(|text| ByteArray::from(*text)).collect::<Vec<_>>();
        for (values, definitions, repetitions) in [
            (texts(&["user"]), vec![4, 3, 1], vec![0, 1, 0]),
            (texts(&["hi", "hello"]), vec![3, 3, 1], vec![0, 1, 0]),
            (vec![], vec![], vec![]),
            (texts(&["x", "y"]), vec![0, 1, 1], vec![0, 0, 1]),
        ] {
            let mut column = group.next_column().unwrap().unwrap();
            match definitions.is_empty() {
                true => column.typed::<Int32Type>().write_batch(&[7], Some(&[1, 0]), None).unwrap(),
                false => {
                    let levels = (Some(&definitions[..]), Some(&repetitions[..]));
                    column.typed::<ByteArrayType>().write_batch(&values, levels.0, levels.1).unwrap()
                }
            };
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let rows = read_bytes(&bytes, Reading::default()).unwrap();
        let turns = json!([{"role": "user", "content": "hi"}, {"role": null, "content": "hello"}]);
        assert_eq!(rows[0], json!({"messages": turns, "meta": {"n": 7}, "tag": []}));
        assert_eq!(rows[1], json!({"messages": [], "meta": null, "tag": ["x", "y"]}));
        let tags: &dyn Fn(&str) -> bool = &|name| name == "tag";
        let rows = read_bytes(&bytes, Reading { wanted: Some(tags), ..Reading::default() }).unwrap();
        assert_eq!(rows, [json!({"tag": []}), json!({"tag": ["x", "y"]})]);
    }

    #[test]
    fn a_column_of_nulls_has_no_type_of_its_own() {
        let schema = parse_message_type("message schema { optional int32 system (UNKNOWN); }").unwrap();
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&[], Some(&[0, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        assert_eq!(read_bytes(&bytes, Reading::default()).unwrap(), vec![json!({"system": null}); 2]);
    }

    #[test]
    fn nulls_and_broken_files() {
        let rows = read(&[("text", Column::Texts(vec![Some("a".into()), None]))]).unwrap();
        assert_eq!(rows, [json!({"text": "a"}), json!({"text": null})]);
        let bytes = Column::Texts(vec![Some(vec![0xff].into()), None]);
        let not_text = read(&[("text", bytes)]).unwrap_err();
        assert!(not_text.contains("f.parquet, row 1: column `text`: expected UTF-8"), "{not_text}");
        let twice = read(&[("text", Column::texts(["a"])), ("text", Column::texts(["b"]))]).unwrap_err();
        assert!(twice.contains("`text` twice"), "{twice}");

        let whole = parquet(&[("text", Column::texts(["a"]))], WriterProperties::default());
        let cut = read_bytes(&whole[..whole.len() / 2], Reading::default()).unwrap_err();
        assert!(cut.contains("f.parquet: expected a complete parquet file, got: "), "{cut}");
    }
}
