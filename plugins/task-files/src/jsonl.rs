//! One JSON object a line.

use crate::lines::Lines;
use crate::part::{Row, Rows};
use crate::schema::{Schema, clip};
use serde_json::{Map, Value};
use sparta_plugin::Error;
use std::path::{Path, PathBuf};

/// The rows of a file of objects with the text and label keys of `schema`. Other keys are ignored.
///
/// # Errors
/// The file cannot be opened. A line that is not such an object is an error of the iterator.
pub(crate) fn rows(path: &Path, schema: &Schema) -> Result<Rows, Error> {
    let mut reader = JsonlReader { path: path.to_owned(), lines: Lines::open(path)?, schema: *schema };
    Ok(Box::new(std::iter::from_fn(move || reader.next_row().transpose())))
}

struct JsonlReader {
    path: PathBuf,
    lines: Lines,
    schema: Schema,
}

impl JsonlReader {
    fn next_row(&mut self) -> Result<Option<Row>, Error> {
        let Some((number, line)) = self.lines.next_filled()? else {
            return Ok(None);
        };
        match parse(number, &line, &self.schema) {
            Ok(row) => Ok(Some(row)),
            Err(what) => Err(Error(format!("{}:{number}: {what}", self.path.display()))),
        }
    }
}

fn parse(number: u64, line: &str, schema: &Schema) -> Result<Row, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|e| format!("expected a JSON object, got `{}`: {e}", clip(line)))?;
    let columns = schema.columns(|name| object.contains_key(name)).ok_or_else(|| {
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        format!("expected an object with the keys {}, got {}", schema.expected_columns(), clip(&keys.join(", ")))
    })?;
    let text = |name: &str| match object.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => {
            let got = other.map(Value::to_string).unwrap_or_default();
            Err(format!("expected a string for `{name}`, got `{}`", clip(&got)))
        }
    };
    schema.check_single(&columns, |name| object.get(name).is_some_and(|value| !value.is_null()))?;
    let label = match columns.label.and_then(|name| object.get(name)) {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(other) => Some(other.to_string()),
    };
    Ok(Row { number, text: text(columns.text)?, pair: columns.pair.map(text).transpose()?, label })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::{PAIR, SINGLE};

    fn read(content: &str, schema: &Schema) -> Result<Vec<Row>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        std::fs::write(&path, content).unwrap();
        rows(&path, schema)?.collect()
    }

    #[test]
    fn labels_are_numbers_names_or_missing() {
        let content = "{\"text\":\"a\\tb\",\"label\":1,\"idx\":7}\r\n{\"label\":\"negative\",\"sentence\":\"c\"}\n\
                       {\"text\":\"d\",\"label\":null}\n{\"text\":\"e\"}";
        let rows = read(content, &SINGLE).unwrap();
        let got: Vec<_> = rows.iter().map(|row| (row.number, row.text.as_str(), row.label.as_deref())).collect();
        let expected = [(1, "a\tb", Some("1")), (2, "c", Some("negative")), (3, "d", None), (4, "e", None)];
        assert_eq!(got, expected);
    }

    #[test]
    fn a_pair_for_a_task_of_single_texts_is_an_error() {
        let read = |second: &str| {
            let lines = format!("{{\"text\":\"a\",\"label\":1}}\n{{\"text\":\"a\",\"pair\":{second},\"label\":1}}\n");
            read(&lines, &SINGLE)
        };
        assert_eq!(read("null").unwrap().len(), 2);
        let error = read("\"b\"").unwrap_err().to_string();
        assert!(error.contains("f.jsonl:2: expected single texts"), "{error}");
    }

    #[test]
    fn pairs_are_read_from_either_set_of_keys() {
        let rows = read(
            "{\"question1\":\"a\",\"question2\":\"b\",\"label\":0}\n{\"text\":\"c\",\"pair\":\"d\",\"label\":1}\n",
            &PAIR,
        )
        .unwrap();
        assert_eq!((rows[0].text.as_str(), rows[0].pair.as_deref()), ("a", Some("b")));
        assert_eq!((rows[1].text.as_str(), rows[1].pair.as_deref()), ("c", Some("d")));
    }

    #[test]
    fn malformed_rows_name_the_line() {
        let first = "{\"text\":\"a\",\"label\":0}\n";
        let cases = [
            ("{\"text\":\"a\"", "f.jsonl:2: expected a JSON object, got `{\"text\":\"a\"`"),
            ("[1]", "f.jsonl:2: expected a JSON object, got `[1]`"),
            (
                "{\"txt\":\"a\"}",
                "f.jsonl:2: expected an object with the keys `sentence` or `text`, with `label`, got txt",
            ),
            ("{\"text\":3,\"label\":0}", "f.jsonl:2: expected a string for `text`, got `3`"),
        ];
        for (line, expected) in cases {
            let message = read(&format!("{first}{line}\n"), &SINGLE).unwrap_err().0;
            assert!(message.contains(expected), "{message}");
        }
    }
}
