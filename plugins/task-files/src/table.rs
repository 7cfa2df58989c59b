//! Records of a file in any format: names and values.

use crate::format::Format;
use crate::input::Input;
use crate::lines::Lines;
use crate::{csv, folders, json, jsonl, parquet, tsv};
use serde_json::{Map, Value};
use sparta_plugin::Error;
use std::path::Path;

/// One row of a file: strings and numbers, and from JSON and parquet also lists and objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// 1-based line or row.
    pub number: u64,
    pub values: Map<String, Value>,
}

pub type Records = Box<dyn Iterator<Item = Result<Record, Error>> + Send>;

/// An opened file. Records are read on demand; after an error, the next ones are unspecified.
pub struct Table {
    /// The names of all columns, if the file gives them before its records.
    pub columns: Option<Vec<String>>,
    pub records: Records,
}

/// How to read a file.
#[derive(Clone, Copy, Default)]
pub struct Reading<'a> {
    /// Whether to read a column; `None` reads all.
    pub wanted: Option<&'a dyn Fn(&str) -> bool>,
    /// The columns of a TSV file without a header line.
    pub header: Option<&'a [&'a str]>,
    /// Whether a TSV row may continue on the next line, because the texts contain line breaks.
    pub wrapped_rows: bool,
}

impl Reading<'_> {
    pub(crate) fn wants(&self, column: &str) -> bool {
        self.wanted.is_none_or(|wanted| wanted(column))
    }
}

/// The column name for texts that have none: lines, and the files of a folder.
pub(crate) const TEXT: &str = "text";
/// The column name for the class of a file in a folder.
pub(crate) const LABEL: &str = "label";

impl Table {
    /// Opens a file or a folder of texts.
    ///
    /// # Errors
    /// It cannot be read, is not of this format, or has two columns of the same name.
    pub fn open(path: &Path, format: Format, reading: Reading) -> Result<Table, Error> {
        match format {
            Format::Parquet => parquet::table(path, reading),
            Format::TextFolders => folders::table(path, None),
            _ => Self::read(Input::open(path)?, format, reading),
        }
    }

    /// Reads a text, for example standard input.
    ///
    /// # Errors
    /// As [`Table::open`]; a format that cannot be read from front to back.
    pub fn read(input: Input, format: Format, reading: Reading) -> Result<Table, Error> {
        match format {
            Format::Csv => csv::table(input, reading),
            Format::Tsv => tsv::table(input, reading),
            Format::Jsonl => Ok(Table { columns: None, records: jsonl::records(input) }),
            Format::Json => Ok(Table { columns: None, records: json::records(input) }),
            Format::Lines => Ok(Table { columns: Some(vec![TEXT.into()]), records: line_records(input) }),
            Format::Parquet | Format::TextFolders => {
                Err(Error(format!("{}: expected text, not parquet or a folder; name a file", input.name)))
            }
        }
    }
}

fn line_records(input: Input) -> Records {
    let mut lines = Lines::new(input);
    let record = |(number, line)| Record { number, values: Map::from_iter([(TEXT.into(), Value::String(line))]) };
    Box::new(std::iter::from_fn(move || lines.next_filled().map(|line| line.map(record)).transpose()))
}

/// # Errors
/// A wanted name occurs twice.
pub(crate) fn check_header(name: &str, columns: &[String], reading: Reading) -> Result<(), Error> {
    let twice = |(i, column): (usize, &String)| columns[..i].contains(column) && reading.wants(column);
    match columns.iter().enumerate().find(|one| twice(*one)) {
        Some((_, column)) => Err(Error(format!("{name}: expected columns of different names, got `{column}` twice"))),
        None => Ok(()),
    }
}
