//! Which columns of a table hold the texts and the labels: those the user names, or else those with common names.

use crate::schema::clip;
use serde_json::{Map, Value};

/// Common names for a pair of texts; if a table has one, it is preferred to a single text.
const PAIRS: [(&str, &str); 8] = [
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("text", "pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "document"),
];
/// Common names for a text.
const TEXTS: [&str; 5] = ["text", "sentence", "content", "question", "review"];
/// Common names for a label.
const LABELS: [&str; 4] = ["label", "labels", "target", "class"];

/// What the user has named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named {
    pub text: Option<String>,
    pub pair: Option<String>,
    pub label: Option<String>,
}

/// The columns of a table, as it writes their names.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    pub text: String,
    pub pair: Option<String>,
    /// `None` in a table without labels.
    pub label: Option<String>,
}

impl Named {
    /// Whether a column may be one that is looked for.
    pub fn wants(&self, column: &str) -> bool {
        let usual = PAIRS.iter().flat_map(|(text, pair)| [*text, *pair]).chain(TEXTS).chain(LABELS);
        let named = [&self.text, &self.pair, &self.label].into_iter().flatten();
        usual.chain(named.map(String::as_str)).any(|name| name.eq_ignore_ascii_case(column))
    }

    /// Picks among the columns of a table. Common names may be capitalized.
    ///
    /// # Errors
    /// What is missing, and what there is. A table may have no labels.
    pub fn columns(&self, all: &[&str]) -> Result<Columns, String> {
        let (text, pair) = match (&self.text, &self.pair) {
            (Some(text), pair) => (find_named("text", text, all)?, self.find_pair(pair, all)?),
            (None, Some(pair)) => {
                let pair = find_named("pair", pair, all)?;
                let usual = PAIRS.iter().find(|(_, usual)| usual.eq_ignore_ascii_case(&pair));
                let partner = usual.and_then(|(text, _)| find(text, all)).filter(|text| *text != pair);
                let single = || TEXTS.iter().find_map(|name| find(name, all)).filter(|text| *text != pair);
                (partner.or_else(single).ok_or_else(|| self.no_text(all))?, Some(pair))
            }
            (None, None) => self.usual(all)?,
        };
        let label = match &self.label {
            Some(label) => find(label, all),
            None => LABELS.iter().find_map(|name| find(name, all)),
        };
        Ok(Columns { text, pair, label })
    }

    fn find_pair(&self, pair: &Option<String>, all: &[&str]) -> Result<Option<String>, String> {
        pair.as_ref().map(|pair| find_named("pair", pair, all)).transpose()
    }

    fn usual(&self, all: &[&str]) -> Result<(String, Option<String>), String> {
        let pair = PAIRS.iter().find_map(|(text, pair)| Some((find(text, all)?, Some(find(pair, all)?))));
        let single = || TEXTS.iter().find_map(|name| Some((find(name, all)?, None)));
        pair.or_else(single).ok_or_else(|| self.no_text(all))
    }

    fn no_text(&self, all: &[&str]) -> String {
        let pairs: Vec<String> = PAIRS.iter().map(|(text, pair)| format!("{text} and {pair}")).collect();
        format!(
            "expected a column of texts ({}, or for pairs {}), got the columns {}; name yours with --text, and --pair for \
             pairs",
            TEXTS.join(", "),
            pairs.join(", "),
            shown(all)
        )
    }
}

/// A column of this name, or one that differs only in case.
fn find(name: &str, all: &[&str]) -> Option<String> {
    let exact = all.iter().find(|column| **column == name);
    exact.or_else(|| all.iter().find(|column| column.eq_ignore_ascii_case(name))).map(|column| column.to_string())
}

fn find_named(option: &str, name: &str, all: &[&str]) -> Result<String, String> {
    find(name, all).ok_or_else(|| format!("expected a column `{name}`, named by --{option}, got {}", shown(all)))
}

fn shown(all: &[&str]) -> String {
    match all.is_empty() {
        true => "none".into(),
        false => clip(&all.join(", ")),
    }
}

/// The text of a column.
///
/// # Errors
/// The value is not a string; the message leaves out the place.
pub fn text(values: &Map<String, Value>, name: &str) -> Result<String, String> {
    match values.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => {
            let got = other.unwrap_or(&Value::Null).to_string();
            Err(format!("expected a string for `{name}`, got `{}`", clip(&got)))
        }
    }
}

/// A label as text: a number by its digits, with 1.0 as 1; `None` if there is none.
///
/// # Errors
/// The value is a list or an object; the message leaves out the place.
pub fn label(values: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match values.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => scalar(value)
            .map(Some)
            .ok_or_else(|| format!("expected a text or a number for `{name}`, got `{}`", clip(&value.to_string()))),
    }
}

/// A string, number or boolean as text.
pub fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < 1e15 => Some(format!("{x:.0}")),
            _ => Some(number.to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn columns(named: [&str; 3], all: &[&str]) -> Result<(String, Option<String>, Option<String>), String> {
        let [text, pair, label] = named.map(|name| Some(name.to_owned()).filter(|name| !name.is_empty()));
        let Columns { text, pair, label } = Named { text, pair, label }.columns(all)?;
        Ok((text, pair, label))
    }

    #[track_caller]
    fn check(named: [&str; 3], all: &[&str], expected: [&str; 3]) {
        let [text, pair, label] = expected;
        let some = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        assert_eq!(columns(named, all).unwrap(), (text.to_owned(), some(pair), some(label)));
    }

    #[test]
    fn usual_names_are_recognised() {
        check(["", "", ""], &["id", "Text", "LABEL"], ["Text", "", "LABEL"]);
        check(["", "", ""], &["premise", "hypothesis", "text"], ["premise", "hypothesis", ""]);
        check(["", "", ""], &["question", "target"], ["question", "", "target"]);
        check(["", "", ""], &["pair", "text"], ["text", "pair", ""]);
        check(["", "pair", ""], &["pair", "content"], ["content", "pair", ""]);
        let error = columns(["", "", ""], &["a", "b"]).unwrap_err();
        assert!(error.contains("got the columns a, b; name yours with --text"), "{error}");
    }

    #[test]
    fn named_columns_win() {
        check(["body", "", "stars"], &["text", "pair", "body", "stars"], ["body", "", "stars"]);
        check(["a", "b", ""], &["a", "b", "label"], ["a", "b", "label"]);
        let error = columns(["body", "", ""], &["Boby", "x"]).unwrap_err();
        assert_eq!(error, "expected a column `body`, named by --text, got Boby, x");
        check(["body", "", "y"], &["body", "label"], ["body", "", ""]);
    }

    #[test]
    fn labels_of_any_kind_are_texts() {
        let shown = |value: Value| label(&Map::from_iter([("l".to_owned(), value)]), "l");
        assert_eq!(shown(json!("1.0")).unwrap().as_deref(), Some("1.0"));
        assert_eq!(shown(json!(1.0)).unwrap().as_deref(), Some("1"));
        assert_eq!(shown(json!(2.5)).unwrap().as_deref(), Some("2.5"));
        assert_eq!(shown(json!(-1)).unwrap().as_deref(), Some("-1"));
        assert_eq!(shown(json!(true)).unwrap().as_deref(), Some("true"));
        assert_eq!(shown(Value::Null), Ok(None));
        assert!(shown(json!(["a"])).unwrap_err().contains("got `[\"a\"]`"));
    }
}
