//! One JSON object a line.

use crate::lines::Lines;
use crate::part::{Row, Rows};
use crate::schema::{Schema, clip};
use serde_json::{Map, Value};
use sparta_plugin::Error;
use std::path::Path;

/// The rows of a file of objects with the text and label keys of `schema`. Other keys are ignored.
///
/// # Errors
/// The file cannot be opened. A line that is not such an object is an error of the iterator.
pub(crate) fn rows(path: &Path, schema: &Schema) -> Result<Rows, Error> {
    let (path, schema, mut lines) = (path.to_owned(), *schema, Lines::open(path)?);
    Ok(Box::new(std::iter::from_fn(move || {
        let (number, line) = lines.next_filled().transpose()?.map_err(Some).map_or_else(|e| (0, e.map_or(String::new(), |e| e.0)), |l| l);
        Some(row(number, &line, &schema).map_err(|what| Error(format!("{}:{number}: {what}", path.display()))))
    })))
}

fn row(number: u64, line: &str, schema: &Schema) -> Result<Row, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|e| format!("expected a JSON object, got `{}`: {e}", clip(line)))?;
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    let columns = schema.columns(&names).ok_or_else(|| {
        format!("expected an object with the keys {}, got {}", schema.expected_columns(), clip(&names.join(", ")))
    })?;
    let value = |column: usize| names.get(column).and_then(|name| Some((*name, object.get(*name)?)));
    let string = |column: usize| match value(column) {
        Some((_, Value::String(text))) => Ok(text.clone()),
        Some((name, other)) => Err(format!("expected a string for `{name}`, got {}", clip(&other.to_string()))),
        None => Err("expected a text".to_owned()),
    };
    let label = match columns.label.and_then(value) {
        None | Some((_, Value::Null)) => None,
        Some((_, Value::String(name))) => Some(name.clone()),
        Some((_, other)) => Some(other.to_string()),
    };
    Ok(Row { number, text: string(columns.text)?, pair: columns.pair.map(string).transpose()?, label })
}
