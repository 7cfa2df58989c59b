//! The names of a task's columns and labels.

use sparta_plugin::task::Example;

/// Which columns hold the texts and the label of an example, in files of any format, and which labels exist.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Names of the text column and, for a pair task, of the second text's. The first entry that a file has is used.
    pub texts: &'static [(&'static str, Option<&'static str>)],
    /// Names of the label column. The first one that a file has is used.
    pub label: &'static [&'static str],
    /// Class names in the order of the labels 0, 1, ...; empty if the label is a number.
    pub classes: &'static [&'static str],
    /// The columns of a TSV file without a header line.
    pub headerless: Option<&'static [&'static str]>,
    /// Whether a TSV row may continue on the next line, because the texts contain line breaks.
    pub wrapped_rows: bool,
}

/// Names of the columns in one file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Columns {
    pub text: &'static str,
    pub pair: Option<&'static str>,
    /// `None` in a file without labels.
    pub label: Option<&'static str>,
}

/// The column of a second text in files of no particular task.
const SECOND: &str = "pair";

impl Schema {
    /// Errors: a file that `has` a second text, for a task of single texts.
    pub(crate) fn check_single(&self, columns: &Columns, has: impl Fn(&str) -> bool) -> Result<(), String> {
        match columns.pair.is_none() && has(SECOND) {
            true => Err(format!("expected single texts, got a second one under `{SECOND}`")),
            false => Ok(()),
        }
    }

    /// The columns of a file that `has` them; `None` if the texts are missing.
    pub(crate) fn columns(&self, has: impl Fn(&str) -> bool) -> Option<Columns> {
        let (text, pair) = self.texts.iter().find(|(text, pair)| has(text) && pair.is_none_or(&has))?;
        let label = self.label.iter().copied().find(|name| has(name));
        Some(Columns { text, pair: *pair, label })
    }

    /// Whether a column of this name may be used.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        let texts = self.texts.iter().any(|(text, pair)| *text == name || *pair == Some(name));
        texts || self.label.contains(&name) || name == SECOND
    }

    /// Whether a label means that there is none: the hub's -1, or an empty field.
    pub(crate) fn is_unlabelled(&self, label: &str) -> bool {
        label.is_empty() || (label.parse() == Ok(-1.0))
    }

    /// An example with the label `text`, a class by name or number, or a number, and without texts yet.
    ///
    /// # Errors
    /// What was expected and what was given, without file and line.
    pub(crate) fn label(&self, text: &str) -> Result<Example, String> {
        if !self.classes.is_empty() {
            return Ok(Example { label: self.class(text)?, ..Example::default() });
        }
        match text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && !self.is_unlabelled(text) => {
                Ok(Example { number: Some(number), ..Example::default() })
            }
            _ => Err(format!("expected a number as the label, got `{}`", clip(text))),
        }
    }

    fn class(&self, text: &str) -> Result<u32, String> {
        let by_name = self.classes.iter().position(|class| *class == text);
        let by_number = || text.parse().ok().filter(|&n: &usize| n < self.classes.len());
        match by_name.or_else(by_number) {
            Some(class) => Ok(class as u32),
            None => {
                let classes = self.classes.iter().enumerate();
                let known: Vec<_> = classes.map(|(i, class)| format!("{i} ({class})")).collect();
                Err(format!("expected a label {}, got `{}`", known.join(", "), clip(text)))
            }
        }
    }

    /// The accepted columns, for messages.
    pub(crate) fn expected_columns(&self) -> String {
        let texts = self.texts.iter().map(|(text, pair)| match pair {
            Some(pair) => format!("`{text}` and `{pair}`"),
            None => format!("`{text}`"),
        });
        format!("{}, with `{}`", texts.collect::<Vec<_>>().join(" or "), self.label.join("` or `"))
    }
}

/// A piece of the user's file, clipped to 60 characters.
pub fn clip(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SINGLE: Schema = Schema {
        texts: &[("sentence", None), ("text", None)],
        label: &["label"],
        classes: &["negative", "positive"],
        headerless: None,
        wrapped_rows: false,
    };
    pub(crate) const PAIR: Schema = Schema {
        texts: &[("question1", Some("question2")), ("text", Some("pair"))],
        label: &["label", "is_duplicate"],
        classes: &["not_duplicate", "duplicate"],
        headerless: None,
        wrapped_rows: true,
    };

    #[test]
    fn the_first_set_of_columns_that_is_complete_is_used() {
        let columns = |schema: Schema, names: &[&str]| schema.columns(|name| names.contains(&name));
        let found = Columns { text: "question1", pair: Some("question2"), label: Some("is_duplicate") };
        assert_eq!(columns(PAIR, &["id", "is_duplicate", "question2", "question1", "text", "pair"]), Some(found));
        let generic = Columns { text: "text", pair: Some("pair"), label: Some("label") };
        assert_eq!(columns(PAIR, &["question1", "text", "pair", "label"]), Some(generic));
        assert_eq!(columns(PAIR, &["question1", "text"]), None);
        let unlabelled = Columns { text: "sentence", pair: None, label: None };
        assert_eq!(columns(SINGLE, &["index", "sentence"]), Some(unlabelled));
    }

    #[test]
    fn a_class_is_its_name_or_its_number() {
        assert_eq!(SINGLE.class("positive"), Ok(1));
        assert_eq!(SINGLE.class("0"), Ok(0));
        for wrong in ["2", "-1", "Positive", "", "1.0"] {
            let message = SINGLE.class(wrong).unwrap_err();
            assert_eq!(message, format!("expected a label 0 (negative), 1 (positive), got `{wrong}`"));
        }
    }

    #[test]
    fn without_classes_a_label_is_a_number() {
        let number = Schema { classes: &[], ..PAIR };
        assert_eq!(number.label(" 3.25").unwrap().number, Some(3.25));
        for wrong in ["-1", "", "good", "inf"] {
            assert_eq!(number.label(wrong).unwrap_err(), format!("expected a number as the label, got `{wrong}`"));
        }
    }

    #[test]
    fn long_pieces_are_clipped_between_characters() {
        assert_eq!(clip(&"é".repeat(61)), format!("{}...", "é".repeat(60)));
        assert_eq!(clip("short"), "short");
    }
}
