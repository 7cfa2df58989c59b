//! The texts for `predict` and the prompts for `generate`, streamed from a file in any format or from standard input.

use sparta_core::{Error, Result};
use sparta_task_files::{Columns, Format, Input, MAX_LINE, Named, Reading, Record, Table, text};
use std::io::{BufRead, Cursor, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

/// A text, or a pair of texts.
pub type Texts = (String, Option<String>);

/// How many texts are read ahead.
const AHEAD: usize = 64;

/// How the texts are stored.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// One of [`Format::NAMES`]; `None`: by the file's name, or else its first line.
    pub format: Option<String>,
    /// The columns named by the user.
    pub named: Named,
    /// Those of the training data, used if the table has them.
    pub trained: Named,
}

/// How records become entries.
pub trait Shape: Send + 'static {
    type Entry: Send + 'static;

    /// The format named by the user.
    fn format(&self) -> Option<&str> {
        None
    }

    /// Whether a column is read.
    fn wants(&self, column: &str) -> bool;

    /// Errors: the columns lack one that entries need.
    fn check(&self, columns: &[&str]) -> std::result::Result<(), String>;

    /// Errors: a record that is not an entry.
    fn entry(&self, record: Record) -> std::result::Result<Self::Entry, String>;
}

/// Reads entries in its own thread, so that work on some overlaps with waiting for more.
pub struct Incoming<E> {
    entries: Receiver<Result<E>>,
    /// Whether entries may come at any time, from standard input or a pipe. Those of files are taken in full batches,
    /// so what is computed together, and with it the last bit, does not depend on how fast they are read.
    live: bool,
}

impl<E: Send + 'static> Incoming<E> {
    /// Opens a file, a folder, or standard input.
    ///
    /// Errors: a file that cannot be opened; a table without a text column, or in an unknown format.
    pub fn open(path: Option<&Path>, shape: impl Shape<Entry = E>) -> Result<Self> {
        let live = path.is_none_or(|path| !path.is_file() && !path.is_dir());
        Ok(Incoming { live, ..Self::begin(path, shape)? })
    }

    fn begin(path: Option<&Path>, shape: impl Shape<Entry = E>) -> Result<Self> {
        let Some(path) = path else { return Self::read("standard input".into(), std::io::stdin(), shape) };
        let named = shape.format().map(Format::named).transpose().map_err(data)?;
        match named.or_else(|| Format::of(path)) {
            Some(format) => {
                let table = Table::open(path, format, reading(&|name| shape.wants(name))).map_err(data)?;
                Self::start(path.display().to_string(), format, table, shape)
            }
            None => Self::read_input(Input::open(path).map_err(data)?, None, shape),
        }
    }

    fn read(name: String, input: impl Read + Send + 'static, shape: impl Shape<Entry = E>) -> Result<Self> {
        let named = shape.format().map(Format::named).transpose().map_err(data)?;
        Self::read_input(Input::new(name, input).map_err(data)?, named, shape)
    }

    fn read_input(input: Input, format: Option<Format>, shape: impl Shape<Entry = E>) -> Result<Self> {
        let (input, format) = match format {
            Some(format) => (input, format),
            None => told_by_first_line(input)?,
        };
        let name = input.name.clone();
        let table = Table::read(input, format, reading(&|name| shape.wants(name))).map_err(data)?;
        Self::start(name, format, table, shape)
    }

    fn start(name: String, format: Format, table: Table, shape: impl Shape<Entry = E>) -> Result<Self> {
        // A header that lacks the columns is reported before the first text.
        if let Some(columns) = table.columns.as_ref().filter(|columns| !columns.is_empty()) {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            shape.check(&columns).map_err(|what| Error::Data(format!("{name}: {what}")))?;
        }
        let (sender, entries) = sync_channel(AHEAD);
        let read = move || {
            for record in table.records {
                let entry = record.map_err(data).and_then(|record| {
                    let place = format.place(&name, record.number);
                    shape.entry(record).map_err(|what| Error::Data(format!("{place}: {what}")))
                });
                let failed = entry.is_err();
                if sender.send(entry).is_err() || failed {
                    break;
                }
            }
        };
        std::thread::Builder::new().spawn(read).map_err(Error::io("a thread that reads the texts"))?;
        Ok(Incoming { entries, live: true })
    }

    /// Waits for an entry, and takes all others that are ready, or from a file a full batch. Entries read before an
    /// error come with it. Empty at the end.
    pub fn some(&self) -> (Vec<E>, Result<()>) {
        let mut entries = Vec::new();
        let mut next = self.entries.recv().ok();
        while let Some(entry) = next {
            match entry {
                Ok(entry) => entries.push(entry),
                Err(error) => return (entries, Err(error)),
            }
            next = match entries.len() < AHEAD {
                true if self.live => self.entries.try_recv().ok(),
                true => self.entries.recv().ok(),
                false => None,
            };
        }
        (entries, Ok(()))
    }
}

fn data(error: sparta_plugin::Error) -> Error {
    Error::Data(error.0)
}

fn reading(wanted: &dyn Fn(&str) -> bool) -> Reading<'_> {
    Reading { wanted: Some(wanted), ..Reading::default() }
}

impl Form {
    fn columns(&self, all: &[&str]) -> std::result::Result<Columns, String> {
        match self.named == Named::default() {
            true => self.trained.columns(all).or_else(|_| self.named.columns(all)),
            false => self.named.columns(all),
        }
    }
}

impl Shape for Form {
    type Entry = Texts;

    fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    fn wants(&self, column: &str) -> bool {
        self.named.wants(column) || self.trained.wants(column)
    }

    fn check(&self, columns: &[&str]) -> std::result::Result<(), String> {
        self.columns(columns).map(drop)
    }

    fn entry(&self, record: Record) -> std::result::Result<Texts, String> {
        let names: Vec<&str> = record.values.keys().map(String::as_str).collect();
        let columns = self.columns(&names)?;
        let first = text(&record.values, &columns.text)?;
        let second = columns.pair.map(|pair| text(&record.values, &pair)).transpose()?;
        match first.len().max(second.as_ref().map_or(0, String::len)) {
            0..=MAX_LINE => Ok((first, second)),
            bytes => Err(format!("expected texts of at most 1 MiB, got one of {bytes} bytes")),
        }
    }
}

/// The format of an input whose name does not give it.
///
/// Errors: the first line looks like the header of a table.
fn told_by_first_line(mut input: Input) -> Result<(Input, Format)> {
    let mut first = Vec::new();
    let read = input.reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut first);
    read.map_err(Error::io(&input.name))?;
    let line = String::from_utf8_lossy(&first);
    let format = format_of(&line).map_err(|what| Error::Data(format!("{}:1: {what}", input.name)))?;
    let reader = Box::new(Cursor::new(first).chain(input.reader));
    Ok((Input { reader, ..input }, format))
}

fn format_of(line: &str) -> std::result::Result<Format, String> {
    if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).is_ok() {
        return Ok(Format::Jsonl);
    }
    if line.trim() == "{" || line.trim() == "[" || serde_json::from_str::<Vec<serde_json::Value>>(line).is_ok() {
        return Ok(Format::Json);
    }
    for (separator, format) in [('\t', "tsv"), (',', "csv"), (';', "csv")] {
        let fields: Vec<&str> = line.split(separator).map(|field| field.trim().trim_matches('"')).collect();
        let named = Named::default().columns(&fields);
        if fields.len() > 1 && named.is_ok_and(|named| named.label.is_some() || named.pair.is_some() || format == "tsv")
        {
            return Err(format!(
                "{:?} looks like the header of a table: confirm with --format {format}, or read one text per line with --format lines",
                line.trim_end()
            ));
        }
    }
    Ok(Format::Lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(format: Option<&str>, content: &'static str) -> std::result::Result<Vec<Texts>, String> {
        let form = Form { format: format.map(str::to_owned), ..Form::default() };
        let incoming = Incoming::read("f".into(), content.as_bytes(), form).map_err(|e| e.to_string())?;
        let mut all = Vec::new();
        loop {
            let (texts, outcome) = incoming.some();
            let end = texts.is_empty();
            all.extend(texts);
            outcome.map_err(|e| e.to_string())?;
            if end {
                return Ok(all);
            }
        }
    }

    fn read(content: &'static str) -> std::result::Result<Vec<Texts>, String> {
        read_as(None, content)
    }

    fn texts(texts: &[&str]) -> Vec<Texts> {
        texts.iter().map(|text| (text.to_string(), None)).collect()
    }

    #[test]
    fn the_first_line_tells_the_format_where_nothing_else_does() {
        assert_eq!(read("good film\n{not json}\n\n").unwrap(), texts(&["good film", "{not json}"]));
        assert_eq!(read("{sic} a film\nb").unwrap(), texts(&["{sic} a film", "b"]));
        assert_eq!(read("[sic] a film, and more\n").unwrap(), texts(&["[sic] a film, and more"]));
        let pairs = read("{\"text\": \"a\", \"pair\": \"b\"}\n{\"sentence\": \"c\", \"id\": 1}\n").unwrap();
        assert_eq!(pairs, [("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)]);
        let pair = read("{\"question\": \"q\", \"sentence\": \"s\"}").unwrap();
        assert_eq!(pair, [("q".to_owned(), Some("s".to_owned()))]);
        assert_eq!(read("[{\"text\": \"a\"}, {\"text\": \"b\"}]").unwrap(), texts(&["a", "b"]));
        assert_eq!(read("[\n{\"text\": \"a\"}]").unwrap(), texts(&["a"]));
        assert_eq!(read("{\n\"text\": \"a\"}").unwrap(), texts(&["a"]));
        assert_eq!(read("\n").unwrap(), []);
        for (content, format) in [("text,label\na,1", "csv"), ("sentence\tlabel\na\t1", "tsv"), ("text;label", "csv")] {
            let message = read(content).unwrap_err();
            assert!(message.starts_with("f:1: ") && message.contains(&format!("--format {format}")), "{message}");
        }
    }

    #[test]
    fn a_named_format_is_taken() {
        assert_eq!(read_as(Some("csv"), "id,text\n1,\" a, b \"\n").unwrap(), texts(&[" a, b "]));
        assert_eq!(read_as(Some("tsv"), "text\n\"a\n").unwrap(), texts(&["\"a"]));
        assert_eq!(
            read_as(Some("lines"), "{\"text\": 1}\ntext,label\n").unwrap(),
            texts(&["{\"text\": 1}", "text,label"])
        );
        assert!(read_as(Some("xls"), "").unwrap_err().contains("expected one of csv, tsv"));
        assert!(read_as(Some("parquet"), "").unwrap_err().contains("name a file"));
    }

    #[test]
    fn only_line_ends_and_a_byte_order_mark_are_not_part_of_a_text() {
        assert_eq!(read("\u{feff} a \r\nb\t\n\u{a0}c ").unwrap(), texts(&[" a ", "b\t", "\u{a0}c "]));
        assert_eq!(read("\u{feff}{\"text\": \" a \"}\n").unwrap(), texts(&[" a "]));
    }

    #[test]
    fn columns_of_the_training_data_are_used_where_they_are_there() {
        let named = |text: &str| Named { text: Some(text.into()), ..Named::default() };
        let form = Form { trained: named("body"), ..Form::default() };
        assert_eq!(form.columns(&["text", "body"]).unwrap().text, "body");
        assert_eq!(form.columns(&["text"]).unwrap().text, "text");
        let form = Form { named: named("title"), ..form };
        assert_eq!(form.columns(&["title", "body"]).unwrap().text, "title");
        assert!(form.columns(&["text", "body"]).unwrap_err().contains("`title`"));
    }

    #[test]
    fn malformed_input_names_the_line() {
        let message = |content| read(content).unwrap_err();
        assert_eq!(message("a\n\nb"), "f:2: expected a row, got a blank line; remove it");
        assert!(message("{\"text\": \"a\"}\n{\"txt\": \"b\"}").contains("f:2: expected a column of texts"));
        assert_eq!(message("{\"text\": 1}"), "f:1: expected a string for `text`, got `1`");
        assert!(message("{\"text\": \"a\"}\nb").starts_with("f:2: expected a JSON object"));
        let long: &'static str = Box::leak("x".repeat(MAX_LINE + 1).into_boxed_str());
        assert_eq!(message(long), "f:1: expected lines of at most 1 MiB, got a longer one");
    }
}
