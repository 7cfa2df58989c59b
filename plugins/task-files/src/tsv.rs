//! Tab-separated rows. Quotes are ordinary characters: GLUE's files have unbalanced ones.

use crate::input::Input;
use crate::lines::{Lines, MAX_LINE};
use crate::schema::clip;
use crate::table::{Reading, Record, Table, check_header};
use serde_json::Value;
use sparta_plugin::Error;

/// A table whose columns are named by its first line or by `reading`. A row with a different number of columns is an
/// error of the iterator.
///
/// # Errors
/// The header cannot be read, or has a wanted name twice.
pub(crate) fn table(input: Input, reading: Reading) -> Result<Table, Error> {
    let mut lines = Lines::new(input);
    let names: Vec<String> = match reading.header {
        Some(names) => names.iter().map(|&name| name.to_owned()).collect(),
        None => match lines.next_filled()? {
            Some((_, header)) => header.split('\t').map(|name| name.trim().to_owned()).collect(),
            None => vec![],
        },
    };
    check_header(lines.name(), &names, reading)?;
    let wanted = names.iter().map(|name| reading.wants(name)).collect();
    let mut reader = TsvReader { lines, wanted, names: names.clone(), wrapped: reading.wrapped_rows };
    Ok(Table { columns: Some(names), records: Box::new(std::iter::from_fn(move || reader.next_row().transpose())) })
}

struct TsvReader {
    lines: Lines,
    names: Vec<String>,
    /// Which of the columns are read.
    wanted: Vec<bool>,
    wrapped: bool,
}

impl TsvReader {
    fn next_row(&mut self) -> Result<Option<Record>, Error> {
        let Some((number, mut line)) = self.lines.next_filled()? else {
            return Ok(None);
        };
        let expected = self.names.len();
        let got = columns(&line);
        if self.wrapped && got > 1 && got < expected {
            self.unwrap_row(&mut line)?;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != expected {
            let (name, names) = (self.lines.name(), clip(&self.names.join(", ")));
            return Err(Error(format!(
                "{name}:{number}: expected {expected} columns ({names}), got {got}: `{}`",
                clip(&line)
            )));
        }
        let named = self.names.iter().zip(fields).zip(&self.wanted).filter(|(_, wanted)| **wanted);
        let values = named.map(|((name, field), _)| (name.clone(), Value::from(field))).collect();
        Ok(Some(Record { number, values }))
    }

    /// Appends the lines that a row continues on, until it has all its columns or is too long to be one row.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use serde_json::json;
    use std::io::Cursor;

    fn read(content: &str, reading: Reading) -> Result<Vec<(u64, Value)>, String> {
        let input = Input::new("f.tsv".into(), Cursor::new(content.as_bytes().to_vec())).unwrap();
        let table = Table::read(input, Format::Tsv, reading).map_err(|e| e.0)?;
        let record = |record: Result<Record, Error>| record.map(|r| (r.number, Value::Object(r.values)));
        table.records.map(record).collect::<Result<_, _>>().map_err(|e| e.0)
    }

    #[test]
    fn quotes_are_ordinary_and_spaces_are_kept() {
        let rows = read("\u{feff}label\tsentence\r\n1\t\"so good \r\n0\tit \"s\n", Reading::default()).unwrap();
        let row = |label: &str, sentence: &str| json!({"label": label, "sentence": sentence});
        assert_eq!(rows, [(2, row("1", "\"so good ")), (3, row("0", "it \"s"))]);
        assert_eq!(read("", Reading::default()).unwrap(), []);
    }

    #[test]
    fn a_file_without_header_is_read_by_position() {
        let header = Some(&["source", "label", "mark", "sentence"][..]);
        let wanted: &dyn Fn(&str) -> bool = &|name| ["label", "sentence"].contains(&name);
        let rows = read(
            "gj04\t1\t\tIt sat.\nc\t0\t*\tSat it.",
            Reading { header, wanted: Some(wanted), ..Reading::default() },
        );
        assert_eq!(rows.unwrap()[1], (2, json!({"label": "0", "sentence": "Sat it."})));
    }

    #[test]
    fn a_row_may_span_lines_where_the_format_allows_it() {
        let header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
        let wanted: &dyn Fn(&str) -> bool = &|name| name.starts_with("question");
        let reading = Reading { wrapped_rows: true, wanted: Some(wanted), ..Reading::default() };
        let content = format!("{header}1\t2\t3\twhat\n\nis it\tit\t1\n4\t5\t6\tb\tc\t0\n");
        let row = |a: &str, b: &str| json!({"question1": a, "question2": b});
        assert_eq!(read(&content, reading).unwrap(), [(2, row("what\n\nis it", "it")), (5, row("b", "c"))]);
        for wrong in ["1\t2\t3\ta\tb\n4\t5\t6\tb\tc\t0\n", "1\t2\t3\ta\tb\n", "stray\n4\t5\t6\tb\tc\t0\n"] {
            let error = read(&format!("{header}{wrong}"), reading).unwrap_err();
            assert!(error.contains("f.tsv:2: expected 6 columns (id, qid1,"), "{error}");
        }
    }

    #[test]
    fn wrong_column_counts_are_errors() {
        let count = read("sentence\tlabel\nx\t1\ny\tz\t1\n", Reading::default()).unwrap_err();
        assert!(count.contains("f.tsv:3: expected 2 columns (sentence, label), got 3: `y\tz\t1`"), "{count}");
    }
}
