//! Tab-separated rows. Quotes are ordinary characters: GLUE's files have unbalanced ones.

use crate::lines::{Lines, MAX_LINE};
use crate::part::{Row, Rows};
use crate::schema::{Schema, clip};
use sparta_plugin::Error;
use std::path::{Path, PathBuf};

/// The rows of a file whose columns are found by the header line or, where the schema says so, by position.
///
/// # Errors
/// The file cannot be read or its header lacks the columns of `schema`. A row with another number of columns than
/// the header is an error of the iterator.
pub(crate) fn rows(path: &Path, schema: &Schema) -> Result<Rows, Error> {
    let mut lines = Lines::open(path)?;
    let names: Vec<String> = match schema.headerless {
        Some(names) => names.iter().map(|&name| name.to_owned()).collect(),
        None => match lines.next_filled()? {
            Some((_, header)) => header.split('\t').map(str::to_owned).collect(),
            None => return Ok(Box::new(std::iter::empty())),
        },
    };
    let position = |wanted: &str| names.iter().position(|name| name == wanted);
    let columns = schema.columns(|name| position(name).is_some()).ok_or_else(|| {
        let (path, expected) = (path.display(), schema.expected_columns());
        Error(format!("{path}:1: expected a header line with the columns {expected}, got {}", describe(&names)))
    })?;
    let checked = schema.check_single(&columns, |name| position(name).is_some());
    checked.map_err(|what| Error(format!("{}:1: {what}", path.display())))?;
    let mut reader = TsvReader {
        path: path.to_owned(),
        lines,
        text: position(columns.text),
        pair: columns.pair.and_then(position),
        label: columns.label.and_then(position),
        names,
        wrapped: schema.wrapped_rows,
    };
    Ok(Box::new(std::iter::from_fn(move || reader.next_row().transpose())))
}

struct TsvReader {
    path: PathBuf,
    lines: Lines,
    names: Vec<String>,
    text: Option<usize>,
    pair: Option<usize>,
    label: Option<usize>,
    wrapped: bool,
}

impl TsvReader {
    fn next_row(&mut self) -> Result<Option<Row>, Error> {
        let Some((number, mut line)) = self.lines.next_filled()? else {
            return Ok(None);
        };
        let expected = self.names.len();
        let got = columns(&line);
        if self.wrapped && got > 1 && got < expected {
            self.unwrap_row(&mut line)?;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |column: Option<usize>| fields.get(column?).map(|field| (*field).to_owned());
        match field(self.text) {
            Some(text) if fields.len() == expected => {
                Ok(Some(Row { number, text, pair: field(self.pair), label: field(self.label) }))
            }
            _ => {
                let (path, names) = (self.path.display(), describe(&self.names));
                Err(Error(format!(
                    "{path}:{number}: expected {expected} columns ({names}), got {got}: `{}`",
                    clip(&line)
                )))
            }
        }
    }

    /// Appends the lines over which a row goes on, until it has all its columns or is too long to be one row.
    fn unwrap_row(&mut self, line: &mut String) -> Result<(), Error> {
        while columns(line) < self.names.len() && line.len() <= MAX_LINE {
            let Some((_, next)) = self.lines.next_line()? else {
                break;
            };
            line.push('\n');
            line.push_str(&next);
        }
        Ok(())
    }
}

fn columns(line: &str) -> usize {
    line.split('\t').count()
}

fn describe(names: &[String]) -> String {
    clip(&names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::{PAIR, SINGLE};

    fn read(content: &str, schema: &Schema) -> Result<Vec<Row>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.tsv");
        std::fs::write(&path, content).unwrap();
        rows(&path, schema)?.collect()
    }

    fn row(number: u64, text: &str, pair: Option<&str>, label: &str) -> Row {
        Row { number, text: text.to_owned(), pair: pair.map(str::to_owned), label: Some(label.to_owned()) }
    }

    #[test]
    fn quotes_are_ordinary_and_spaces_are_kept() {
        let rows = read("\u{feff}label\tsentence\r\n1\t\"so good \r\n0\tit \"s\n", &SINGLE).unwrap();
        assert_eq!(rows, [row(2, "\"so good ", None, "1"), row(3, "it \"s", None, "0")]);
    }

    #[test]
    fn a_file_without_header_is_read_by_position() {
        let cola = Schema { headerless: Some(&["source", "label", "mark", "sentence"]), ..SINGLE };
        assert_eq!(read("gj04\t1\t\tIt sat.\nc\t0\t*\tSat it.", &cola).unwrap()[1], row(2, "Sat it.", None, "0"));
    }

    #[test]
    fn a_row_may_go_on_in_the_next_lines_where_the_schema_says_so() {
        let header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
        let content = format!("{header}1\t2\t3\twhat\n\nis it\tit\t1\n4\t5\t6\tb\tc\t0\n");
        let rows = read(&content, &PAIR).unwrap();
        assert_eq!(rows, [row(2, "what\n\nis it", Some("it"), "1"), row(5, "b", Some("c"), "0")]);

        let cut = read(&format!("{header}1\t2\t3\ta\tb\n4\t5\t6\tb\tc\t0\n"), &PAIR).unwrap_err().0;
        assert!(cut.contains("f.tsv:2: expected 6 columns (id, qid1,"), "{cut}");
        assert!(cut.contains("got 5"), "{cut}");
        let end = read(&format!("{header}1\t2\t3\ta\tb\n"), &PAIR).unwrap_err().0;
        assert!(end.contains("f.tsv:2: expected 6 columns"), "{end}");
        let stray = read(&format!("{header}stray\n4\t5\t6\tb\tc\t0\n"), &PAIR).unwrap_err().0;
        assert!(stray.contains("f.tsv:2: expected 6 columns"), "{stray}");
    }

    #[test]
    fn wrong_headers_and_column_counts_are_errors() {
        let header = read("a\tb\nx\t1\n", &SINGLE).unwrap_err().0;
        let expected = "f.tsv:1: expected a header line with the columns `sentence` or `text`, with `label`, got a, b";
        assert!(header.ends_with(expected), "{header}");
        let count = read("sentence\tlabel\nx\t1\ny\tz\t1\n", &SINGLE).unwrap_err().0;
        assert!(count.contains("f.tsv:3: expected 2 columns (sentence, label), got 3: `y\tz\t1`"), "{count}");
    }

    #[test]
    fn a_second_text_for_a_task_of_single_ones_is_an_error() {
        let error = read("text\tpair\tlabel\na\tb\t1\n", &SINGLE).unwrap_err().0;
        assert!(error.ends_with("f.tsv:1: expected single texts, got a second one under `pair`"), "{error}");
    }

    #[test]
    fn a_file_without_label_column_has_rows_without_labels() {
        assert_eq!(read("index\tsentence\n0\tx\n", &SINGLE).unwrap()[0].label, None);
        assert_eq!(read("", &SINGLE).unwrap(), []);
    }
}
