//! One file or folder of texts, and its examples.

use crate::columns;
use crate::folders;
use crate::format::Format;
use crate::lines::MAX_LINE;
use crate::parquet::count;
use crate::schema::{Schema, clip};
use crate::table::{Reading, Record, Table};
use serde_json::Value;
use sparta_plugin::Error;
use sparta_plugin::task::{Example, Examples};
use std::path::PathBuf;

/// A file that holds examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The path below the user's directory, for example `SST-2/train.tsv`.
    pub name: String,
    pub path: PathBuf,
    pub format: Format,
}

/// Give up looking for a label after this many bytes of unlabelled texts.
const UNLABELLED: usize = 256 << 20;

/// One row of the file.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    /// 1-based line or row in the file.
    pub number: u64,
    pub text: String,
    pub pair: Option<String>,
    /// A class name or number; `None` in a file without labels.
    pub label: Option<String>,
}

type Rows = Box<dyn Iterator<Item = Result<Row, Error>>>;

/// Whether a file has labels.
#[derive(Debug, PartialEq)]
pub(crate) enum State {
    /// Some row has a label, so a row without one is an error.
    Labelled,
    /// No row has a label, or all have the hub's -1.
    Unlabelled,
    Empty,
}

impl Part {
    fn rows(&self, schema: &Schema) -> Result<Rows, Error> {
        let wanted = |name: &str| schema.mentions(name);
        let header = schema.headerless.filter(|_| self.format == Format::Tsv);
        let reading = Reading { wanted: Some(&wanted), header, wrapped_rows: schema.wrapped_rows };
        let table = match self.format {
            Format::TextFolders => folders::table(&self.path, Some(schema.classes))?,
            format => Table::open(&self.path, format, reading)?,
        };
        if let Some(names) = table.columns.filter(|names| !names.is_empty()) {
            self.check_columns(schema, &names)?;
        }
        let (part, schema) = (self.clone(), *schema);
        Ok(Box::new(table.records.map(move |record| part.row(record?, &schema))))
    }

    fn check_columns(&self, schema: &Schema, names: &[String]) -> Result<(), Error> {
        let has = |name: &str| names.iter().any(|known| known == name);
        let (path, got) = (self.path.display(), clip(&names.join(", ")));
        let (place, what) = match self.format {
            Format::Parquet => (path.to_string(), "the columns"),
            _ => (format!("{path}:1"), "a header line with the columns"),
        };
        let fail = |what: String| Error(format!("{place}: {what}"));
        let columns = schema
            .columns(has)
            .ok_or_else(|| fail(format!("expected {what} {}, got {got}", schema.expected_columns())))?;
        schema.check_single(&columns, has).map_err(fail)
    }

    fn row(&self, record: Record, schema: &Schema) -> Result<Row, Error> {
        let Record { number, values } = record;
        let row = || {
            let columns = schema.columns(|name| values.contains_key(name)).ok_or_else(|| {
                let keys: Vec<&str> = values.keys().map(String::as_str).collect();
                let got = clip(&keys.join(", "));
                format!("expected an object with the keys {}, got {got}", schema.expected_columns())
            })?;
            schema.check_single(&columns, |name| values.get(name).is_some_and(|value| *value != Value::Null))?;
            Ok(Row {
                number,
                text: columns::text(&values, columns.text)?,
                pair: columns.pair.map(|name| columns::text(&values, name)).transpose()?,
                label: columns.label.map_or(Ok(None), |name| columns::label(&values, name))?,
            })
        };
        row().map_err(|what: String| self.error(number, &what))
    }

    fn error(&self, number: u64, what: &str) -> Error {
        Error(format!("{}: {what}", self.format.place(&self.path.display().to_string(), number)))
    }

    /// The examples in file order, read on demand; they end after the first error.
    ///
    /// # Errors
    /// The file cannot be read or lacks the columns of `schema`.
    pub fn examples(&self, schema: &Schema) -> Result<Examples<'static>, Error> {
        let (part, schema) = (self.clone(), *schema);
        let mut failed = false;
        let rows = part.rows(&schema)?.map(move |row| part.example(row?, &schema));
        Ok(Box::new(rows.take_while(move |example| !std::mem::replace(&mut failed, example.is_err()))))
    }

    fn example(&self, row: Row, schema: &Schema) -> Result<Example, Error> {
        let Row { number, text, pair, label } = row;
        // A small compressed page can expand to a huge text.
        let longest = text.len().max(pair.as_ref().map_or(0, String::len));
        let labelled = match label {
            _ if longest > MAX_LINE => Err(format!("expected texts of at most 1 MiB, got one of {longest} bytes")),
            Some(label) => schema.label(&label),
            None => Err(format!("expected a label in `{}`, got none", schema.label.join("` or `"))),
        };
        let labelled = labelled.map_err(|what| self.error(number, &what))?;
        Ok(Example { text, pair, ..labelled })
    }

    /// Looks for the first row with a label.
    ///
    /// # Errors
    /// A row before that one is malformed, or the file cannot be read.
    pub(crate) fn state(&self, schema: &Schema) -> Result<State, Error> {
        let (mut state, mut bytes) = (State::Empty, 0);
        for row in self.rows(schema)? {
            let row = row?;
            if row.label.as_deref().is_some_and(|label| !schema.is_unlabelled(label)) {
                return match state {
                    State::Empty => self.example(row, schema).map(|_| State::Labelled),
                    _ => Ok(State::Labelled),
                };
            }
            state = State::Unlabelled;
            bytes += row.text.len();
            if bytes > UNLABELLED {
                break;
            }
        }
        Ok(state)
    }

    /// The number of examples; counting a text file stops at `enough`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn count(&self, schema: &Schema, enough: usize) -> Result<usize, Error> {
        match self.format {
            Format::Parquet => count(&self.path),
            Format::TextFolders => folders::count(&self.path, Some(schema.classes)),
            _ => {
                let mut rows = self.rows(schema)?.take(enough);
                rows.try_fold(0, |count, row| row.map(|_| count + 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::{PAIR, SINGLE};
    use crate::testing::{Column, parquet};

    fn part(dir: &tempfile::TempDir, content: &str) -> Part {
        let path = dir.path().join("f.tsv");
        std::fs::write(&path, content).unwrap();
        Part { name: "f.tsv".into(), path, format: Format::Tsv }
    }

    #[test]
    fn examples_end_after_the_first_error() {
        let dir = tempfile::tempdir().unwrap();
        let part = part(&dir, "sentence\tlabel\na\t1\nb\t7\nc\t0\n");
        let all: Vec<_> = part.examples(&SINGLE).unwrap().collect();
        assert_eq!(all[0], Ok(Example { text: "a".into(), label: 1, ..Example::default() }));
        let error = all[1].as_ref().unwrap_err();
        assert!(error.0.ends_with("f.tsv:3: expected a label 0 (negative), 1 (positive), got `7`"), "{error}");
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn one_label_makes_a_file_a_labelled_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = |content: &str| part(&dir, content).state(&SINGLE);
        assert_eq!(state("sentence\tlabel\na\t1\n"), Ok(State::Labelled));
        assert_eq!(state("sentence\tlabel\na\t-1\n"), Ok(State::Unlabelled));
        assert_eq!(state("index\tsentence\n0\ta\n"), Ok(State::Unlabelled));
        assert_eq!(state("sentence\tlabel\na\t-1\nb\t1\n"), Ok(State::Labelled));
        assert_eq!(state("sentence\tlabel\n"), Ok(State::Empty));
        assert!(state("sentence\tlabel\na\tgood\n").is_err());
    }

    #[test]
    fn counting_stops_at_enough() {
        let dir = tempfile::tempdir().unwrap();
        let part = part(&dir, "sentence\tlabel\na\t1\nb\t0\nc\t0\n\n");
        assert_eq!(part.count(&SINGLE, 10), Ok(3));
        assert_eq!(part.count(&SINGLE, 2), Ok(2));
    }

    /// The tables' tests cover the formats; these cover what a schema makes of them.
    fn read(name: &str, format: Format, content: &[u8], schema: &Schema) -> Result<Vec<Row>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let part = Part { name: name.into(), path, format };
        part.rows(schema).map_err(|e| e.0)?.collect::<Result<_, _>>().map_err(|e| e.0)
    }

    fn row(number: u64, text: &str, pair: Option<&str>, label: Option<&str>) -> Row {
        let owned = |text: &str| text.to_owned();
        Row { number, text: owned(text), pair: pair.map(owned), label: label.map(owned) }
    }

    #[test]
    fn columns_and_labels_are_those_of_the_schema() {
        let jsonl = |lines: &str, schema| read("f.jsonl", Format::Jsonl, lines.as_bytes(), schema);
        let lines = "{\"text\":\"a\",\"label\":1,\"idx\":7}\n{\"label\":\"negative\",\"sentence\":\"c\"}\n\
                     {\"text\":\"d\",\"label\":null}\n{\"text\":\"e\"}";
        let expected = [
            row(1, "a", None, Some("1")),
            row(2, "c", None, Some("negative")),
            row(3, "d", None, None),
            row(4, "e", None, None),
        ];
        assert_eq!(jsonl(lines, &SINGLE).unwrap(), expected);
        let lines =
            "{\"question1\":\"a\",\"question2\":\"b\",\"label\":0}\n{\"text\":\"c\",\"pair\":\"d\",\"label\":1}\n";
        assert_eq!(
            jsonl(lines, &PAIR).unwrap(),
            [row(1, "a", Some("b"), Some("0")), row(2, "c", Some("d"), Some("1"))]
        );
        let cola = Schema { headerless: Some(&["source", "label", "mark", "sentence"]), ..SINGLE };
        let rows = read("f.tsv", Format::Tsv, b"gj04\t1\t\tIt sat.\nc\t0\t*\tSat it.", &cola).unwrap();
        assert_eq!(rows[1], row(2, "Sat it.", None, Some("0")));
        assert_eq!(read("f.tsv", Format::Tsv, b"", &SINGLE).unwrap(), []);
        assert_eq!(read("f.tsv", Format::Tsv, b"index\tsentence\n0\tx\n", &SINGLE).unwrap()[0].label, None);
    }

    #[test]
    fn what_does_not_fit_the_schema_is_an_error() {
        let error = |name: &str, format, content: &[u8]| read(name, format, content, &SINGLE).unwrap_err();
        let header = error("f.tsv", Format::Tsv, b"a\tb\nx\t1\n");
        let expected = "f.tsv:1: expected a header line with the columns `sentence` or `text`, with `label`, got a, b";
        assert!(header.ends_with(expected), "{header}");
        let key = error("f.jsonl", Format::Jsonl, b"{\"txt\":\"a\"}");
        let expected = "f.jsonl:1: expected an object with the keys `sentence` or `text`, with `label`, got txt";
        assert!(key.ends_with(expected), "{key}");
        let kind = error("f.jsonl", Format::Jsonl, b"{\"text\":3,\"label\":0}");
        assert!(kind.ends_with("f.jsonl:1: expected a string for `text`, got `3`"), "{kind}");
        let second = error("f.tsv", Format::Tsv, b"text\tpair\tlabel\na\tb\t1\n");
        assert!(second.ends_with("f.tsv:1: expected single texts, got a second one under `pair`"), "{second}");
        let second =
            error("f.jsonl", Format::Jsonl, b"{\"text\":\"a\",\"pair\":null}\n{\"text\":\"a\",\"pair\":\"b\"}");
        assert!(second.contains("f.jsonl:2: expected single texts"), "{second}");

        let numbers = || Column::integers([1, 0]);
        let file = |columns: &[(&str, Column)]| parquet(columns, Default::default());
        let columns = error("f.parquet", Format::Parquet, &file(&[("a", numbers())]));
        assert!(
            columns.ends_with("f.parquet: expected the columns `sentence` or `text`, with `label`, got a"),
            "{columns}"
        );
        let kind = error("f.parquet", Format::Parquet, &file(&[("text", numbers())]));
        assert!(kind.ends_with("f.parquet, row 1: expected a string for `text`, got `1`"), "{kind}");
        let null = Column::Texts(vec![Some("a".into()), None]);
        let null = error("f.parquet", Format::Parquet, &file(&[("text", null), ("label", numbers())]));
        assert!(null.ends_with("f.parquet, row 2: expected a string for `text`, got `null`"), "{null}");
    }
}
