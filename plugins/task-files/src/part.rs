//! One file, or one folder of texts, and its examples.

use crate::lines::MAX_LINE;
use crate::schema::Schema;
use crate::{folders, jsonl, parquet, tsv};
use sparta_plugin::Error;
use sparta_plugin::task::{Example, Examples};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Tsv,
    Parquet,
    /// A folder with one folder of `.txt` files a class.
    TextFolders,
    Jsonl,
}

/// A file that holds examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The path below the user's directory, for example `SST-2/train.tsv`.
    pub name: String,
    pub path: PathBuf,
    pub format: Format,
}

/// Bytes of texts without a label after which none is looked for any more.
const UNLABELLED: usize = 256 << 20;

/// One row as the file has it.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    /// 1-based line or row in the file.
    pub number: u64,
    pub text: String,
    pub pair: Option<String>,
    /// A class name or number; `None` in a file without labels.
    pub label: Option<String>,
}

pub(crate) type Rows = Box<dyn Iterator<Item = Result<Row, Error>>>;

/// Whether a file can be used.
#[derive(Debug, PartialEq)]
pub(crate) enum State {
    /// A row without a label is an error then.
    Labelled,
    /// No row has a label, or all have the hub's -1.
    Unlabelled,
    Empty,
}

impl Part {
    fn rows(&self, schema: &Schema) -> Result<Rows, Error> {
        match self.format {
            Format::Tsv => tsv::rows(&self.path, schema),
            Format::Parquet => parquet::rows(&self.path, schema),
            Format::TextFolders => folders::rows(&self.path, schema),
            Format::Jsonl => jsonl::rows(&self.path, schema),
        }
    }

    /// The examples in file order, read as they are asked for; they end after the first error.
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
        let label = match label {
            Some(label) => schema.class(&label),
            None => Err(format!("expected a label in `{}`, got none", schema.label.join("` or `"))),
        };
        // A small compressed page can hold a huge text.
        let longest = text.len().max(pair.as_ref().map_or(0, String::len));
        let label = label.and_then(|label| match longest {
            0..=MAX_LINE => Ok(label),
            _ => Err(format!("expected texts of at most 1 MiB, got one of {longest} bytes")),
        });
        let label = label.map_err(|what| match self.format {
            Format::Parquet => Error(format!("{}, row {number}: {what}", self.path.display())),
            _ => Error(format!("{}:{number}: {what}", self.path.display())),
        })?;
        Ok(Example { text, pair, label, ..Example::default() })
    }

    /// Looks for the first row with a label.
    ///
    /// # Errors
    /// A row up to there is malformed, or the file cannot be read.
    pub(crate) fn state(&self, schema: &Schema) -> Result<State, Error> {
        let (mut state, mut bytes) = (State::Empty, 0);
        for row in self.rows(schema)? {
            let row = row?;
            if row.label.as_deref().is_some_and(|label| label != "-1") {
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

    /// The number of examples; that of a text file stops at `enough`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn count(&self, schema: &Schema, enough: usize) -> Result<usize, Error> {
        match self.format {
            Format::Parquet => parquet::count(&self.path),
            Format::TextFolders => folders::count(&self.path, schema),
            Format::Tsv | Format::Jsonl => {
                let mut rows = self.rows(schema)?.take(enough);
                rows.try_fold(0, |count, row| row.map(|_| count + 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::SINGLE;

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
}
