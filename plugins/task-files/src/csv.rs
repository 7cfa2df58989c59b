//! Comma-separated rows with quotes, as RFC 4180 and spreadsheets write them.

use crate::input::Input;
use crate::schema::clip;
use crate::table::{Reading, Record, Table, check_header};
use ::csv::{ByteRecord, Reader, ReaderBuilder};
use serde_json::{Map, Value};
use sparta_plugin::Error;
use std::collections::VecDeque;
use std::io::{self, BufRead, Cursor, ErrorKind, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes of a record, all columns together.
const MAX_RECORD: u64 = 16 << 20;

/// Possible separators; the most frequent one in the header line is used.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// # Errors
/// The header cannot be read, or has a wanted name twice.
pub(crate) fn table(mut input: Input, reading: Reading) -> Result<Table, Error> {
    let name = input.name;
    let mut first = Vec::new();
    let read = input.reader.by_ref().take(MAX_RECORD).read_until(b'\n', &mut first);
    read.map_err(|e| Error(format!("{name}: cannot be read: {e}")))?;
    let separator = separator(&first);
    let watch = Arc::new(Watch::default());
    let reader = Cursor::new(first).chain(input.reader);
    let watched = Watched { reader: Box::new(reader), separator, state: State::Start, read: 0, watch: watch.clone() };
    let reader = ReaderBuilder::new().has_headers(false).flexible(true).delimiter(separator).from_reader(watched);
    let mut rows = Rows { name, reader, watch, line: 1, row: ByteRecord::new(), columns: vec![], wanted: vec![] };
    let Some((_, header)) = rows.next_row()? else {
        return Ok(Table { columns: Some(vec![]), records: Box::new(std::iter::empty()) });
    };
    let columns: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    check_header(&rows.name, &columns, reading)?;
    rows.wanted = columns.iter().map(|column| reading.wants(column)).collect();
    rows.columns.clone_from(&columns);
    Ok(Table { columns: Some(columns), records: Box::new(std::iter::from_fn(move || rows.record().transpose())) })
}

fn separator(header: &[u8]) -> u8 {
    let count = |separator: u8| header.iter().filter(|&&byte| byte == separator).count();
    // `max_by_key` takes the last of equals, so the order is reversed.
    SEPARATORS.into_iter().rev().max_by_key(|&separator| count(separator)).unwrap_or(b',')
}

struct Rows {
    name: String,
    reader: Reader<Watched>,
    watch: Arc<Watch>,
    /// The row's line.
    line: u64,
    row: ByteRecord,
    columns: Vec<String>,
    /// Which of the columns are read.
    wanted: Vec<bool>,
}

impl Rows {
    /// The line and the fields of the next row.
    fn next_row(&mut self) -> Result<Option<(u64, Vec<String>)>, Error> {
        self.watch.left.store(MAX_RECORD, Ordering::Relaxed);
        let read = self.reader.read_byte_record(&mut self.row);
        let begun = self.row.position().map_or(0, |position| position.byte());
        let mut ends = self.watch.line_ends.lock().unwrap_or_else(PoisonError::into_inner);
        // The CSV reader counts the `\n` of a `\r\n` as the start of the next row.
        while ends.front().is_some_and(|end| *end <= begun) {
            ends.pop_front();
            self.line += 1;
        }
        drop(ends);
        let line = self.line;
        let fail = |what: String| Error(format!("{}:{line}: {what}", self.name));
        if !read.map_err(|e| fail(format!("expected a CSV row, got: {}", reason(e))))? {
            return Ok(None);
        }
        if self.watch.unclosed.load(Ordering::Relaxed) {
            return Err(fail("a quote is opened and never closed".into()));
        }
        let text = |field: &[u8]| match std::str::from_utf8(field) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(fail(format!(
                "expected UTF-8, got an invalid byte in `{}`; convert the file to UTF-8",
                clip(&String::from_utf8_lossy(field))
            ))),
        };
        Ok(Some((line, self.row.iter().map(text).collect::<Result<_, _>>()?)))
    }

    fn record(&mut self) -> Result<Option<Record>, Error> {
        let Some((number, fields)) = self.next_row()? else { return Ok(None) };
        if fields.len() != self.columns.len() {
            let (expected, got, names) = (self.columns.len(), fields.len(), self.columns.join(", "));
            return Err(Error(format!(
                "{}:{number}: expected {expected} columns ({}), got {got}; put texts with separators in quotes",
                self.name,
                clip(&names)
            )));
        }
        let named = self.columns.iter().zip(fields).zip(&self.wanted).filter(|(_, wanted)| **wanted);
        let values: Map<String, Value> = named.map(|((name, field), _)| (name.clone(), Value::String(field))).collect();
        Ok(Some(Record { number, values }))
    }
}

fn reason(error: ::csv::Error) -> String {
    match error.into_kind() {
        ::csv::ErrorKind::Io(e) => e.to_string(),
        other => format!("{other:?}"),
    }
}

/// What the byte reader tells the row reader.
#[derive(Default)]
struct Watch {
    /// How many more bytes the record may take.
    left: AtomicU64,
    /// Whether a quote was open at the end of the file.
    unclosed: AtomicBool,
    /// Ends of lines that were read but whose rows were not.
    line_ends: Mutex<VecDeque<u64>>,
}

/// Bounds records and tracks quotes, which the CSV reader silently closes at the end of a file.
struct Watched {
    reader: Box<dyn BufRead + Send>,
    separator: u8,
    state: State,
    /// Bytes read so far.
    read: u64,
    watch: Arc<Watch>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// At the beginning of a field.
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted field, which ends the field or is the first of two.
    Quote,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.watch.left.load(Ordering::Relaxed);
        if left == 0 {
            let most = MAX_RECORD >> 20;
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a row of more than {most} MiB; is a quote not closed?"),
            ));
        }
        let read = self.reader.read(buffer)?;
        self.watch.left.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        let mut ends = self.watch.line_ends.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in &buffer[..read] {
            if byte == b'\n' {
                ends.push_back(self.read);
            }
            self.read += 1;
            self.state = match (self.state, byte) {
                (State::Quoted, b'"') => State::Quote,
                (State::Quoted, _) | (State::Start | State::Quote, b'"') => State::Quoted,
                (_, b'\n' | b'\r') => State::Start,
                (_, byte) if byte == self.separator => State::Start,
                _ => State::Plain,
            };
        }
        if read == 0 {
            self.watch.unclosed.store(self.state == State::Quoted, Ordering::Relaxed);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use serde_json::json;

    fn read(content: &str) -> Result<Vec<(u64, Value)>, String> {
        let input = Input::new("f.csv".into(), Cursor::new(content.as_bytes().to_vec())).unwrap();
        let table = Table::read(input, Format::Csv, Reading::default()).map_err(|e| e.0)?;
        let record = |record: Result<Record, Error>| record.map(|r| (r.number, Value::Object(r.values)));
        table.records.map(record).collect::<Result<_, _>>().map_err(|e| e.0)
    }

    #[test]
    fn quoted_fields_hold_anything_and_spaces_stay() {
        let rows = read("id, text ,label\r\n1,\" a, \"\"b\"\"\nc \",x\r\n2, d ,\r\n").unwrap();
        let expected = [
            (2, json!({"id": "1", "text": " a, \"b\"\nc ", "label": "x"})),
            (4, json!({"id": "2", "text": " d ", "label": ""})),
        ];
        assert_eq!(rows, expected);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn other_separators_are_recognised_by_the_header() {
        assert_eq!(read("text;label\na, b;1\n").unwrap(), [(2, json!({"text": "a, b", "label": "1"}))]);
        assert_eq!(read("text\tlabel\na;b\t1\n").unwrap(), [(2, json!({"text": "a;b", "label": "1"}))]);
        assert_eq!(read("text\nalone\n").unwrap(), [(2, json!({"text": "alone"}))]);
    }

    #[test]
    fn malformed_rows_name_the_line() {
        let error = read("text,label\na,1\nb, c,2\n").unwrap_err();
        assert!(error.starts_with("f.csv:3: expected 2 columns (text, label), got 3"), "{error}");
        let error = read("text,label\na,1\n\"b,2\nc,3\n").unwrap_err();
        assert_eq!(error, "f.csv:3: a quote is opened and never closed");
        assert_eq!(read("text,label\n5\" disk,1\n").unwrap()[0].1["text"], "5\" disk");
        let error = read("text,text\na,1\n").unwrap_err();
        assert!(error.contains("`text` twice"), "{error}");
        let long = format!("text,label\n\"{}", "x".repeat(17 << 20));
        assert!(read(&long).unwrap_err().contains("a row of more than 16 MiB"));
        let input = Input::new("f".into(), Cursor::new(b"text\n\xff\n".to_vec())).unwrap();
        let mut records = Table::read(input, Format::Csv, Reading::default()).unwrap().records;
        assert!(records.next().unwrap().unwrap_err().0.starts_with("f:2: expected UTF-8"));
    }
}
