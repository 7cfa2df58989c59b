//! One JSON object per line.

use crate::input::Input;
use crate::lines::Lines;
use crate::schema::clip;
use crate::table::{Record, Records};
use serde_json::{Map, Value};
use sparta_plugin::Error;

/// The objects. A line that is not an object is an error of the iterator.
pub(crate) fn records(input: Input) -> Records {
    let mut lines = Lines::new(input);
    let mut next = move || match lines.next_filled()? {
        Some((number, line)) => match object(&line) {
            Ok(values) => Ok(Some(Record { number, values })),
            Err(what) => Err(Error(format!("{}:{number}: {what}", lines.name()))),
        },
        None => Ok(None),
    };
    Box::new(std::iter::from_fn(move || next().transpose()))
}

/// # Errors
/// What was expected and given, without the place.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("expected a JSON object, got `{}`: {e}", clip(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Cursor;

    fn read(content: &str) -> Result<Vec<(u64, Value)>, String> {
        let input = Input::new("f.jsonl".into(), Cursor::new(content.as_bytes().to_vec())).unwrap();
        let record = |record: Result<Record, Error>| record.map(|r| (r.number, Value::Object(r.values)));
        records(input).map(record).collect::<Result<_, _>>().map_err(|e| e.0)
    }

    #[test]
    fn objects_have_their_values() {
        let rows = read("\u{feff}{\"text\":\"a\\tb\",\"label\":1}\r\n{\"c\":[\"d\"]}\n\n").unwrap();
        assert_eq!(rows, [(1, json!({"text": "a\tb", "label": 1})), (2, json!({"c": ["d"]}))]);
    }

    #[test]
    fn malformed_rows_name_the_line() {
        for (line, got) in [("{\"text\":\"a\"", "{\"text\":\"a\""), ("[1]", "[1]")] {
            let message = read(&format!("{{}}\n{line}\n")).unwrap_err();
            assert!(message.starts_with(&format!("f.jsonl:2: expected a JSON object, got `{got}`")), "{message}");
        }
    }
}
