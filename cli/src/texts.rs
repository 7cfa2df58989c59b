//! The texts that `predict` classifies, and the prompts of `generate`: one a line or JSONL, read as they come.
//!
//! The end of a line is not part of its text, and a byte-order mark is not part of the first; every other character is,
//! as in the files that a task is trained on.

use sparta_core::{Error, Result, files};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

/// A text, or a pair of texts.
pub type Texts = (String, Option<String>);

/// What a line is read as.
pub trait Entry: Sized + Send + 'static {
    /// The key of a text in JSONL, for messages.
    const KEY: &'static str;

    /// Of a line that is a text.
    fn of_text(text: String) -> Self;

    /// Of a line of JSONL. Errors: it has other keys or values.
    fn of_object(object: serde_json::Map<String, serde_json::Value>) -> std::result::Result<Self, String>;
}

/// Bytes of a line, as in the files of tasks.
const LONGEST: usize = 1 << 20;

/// Lines that are read ahead.
const AHEAD: usize = 64;

/// Names that tasks have for a text, and for the second one of a pair.
const KEYS: [(&str, Option<&str>); 6] = [
    ("sentence1", Some("sentence2")),
    ("question1", Some("question2")),
    ("question", Some("sentence")),
    ("premise", Some("hypothesis")),
    ("text", Some("pair")),
    ("sentence", None),
];

/// Reads texts in a thread of its own, so that what has come is classified while more is waited for.
pub struct Incoming<E> {
    lines: Receiver<Result<E>>,
}

impl<E: Entry> Incoming<E> {
    /// Of a file, or of standard input.
    ///
    /// Errors: a file that cannot be opened or is a table.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Self::read(BufReader::new(io::stdin()), "standard input".into(), None) };
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        if ["csv", "tsv", "parquet"].contains(&extension.as_str()) {
            return Err(Error::Data(format!(
                "{}: a table ({extension}), which is not read here; give the texts one a line, or as JSONL with the key \
                 `{}`",
                path.display(),
                E::KEY
            )));
        }
        let form = (extension == "jsonl").then_some(Form::Jsonl);
        let file = files::open(path).map_err(Error::io(path))?;
        Self::read(BufReader::new(file), path.display().to_string(), form)
    }

    fn read(input: impl BufRead + Send + 'static, name: String, form: Option<Form>) -> Result<Self> {
        let (sender, lines) = sync_channel(AHEAD);
        let mut reader = Lines { input, name, form, number: 0, blank: None };
        let read = move || {
            while let Some(texts) = reader.next() {
                let failed = texts.is_err();
                if sender.send(texts).is_err() || failed {
                    break;
                }
            }
        };
        std::thread::Builder::new().spawn(read).map_err(Error::io("a thread that reads the texts"))?;
        Ok(Incoming { lines })
    }

    /// Waits for a text, and takes what else is there; what has come before an error is given first. Nothing at the end.
    pub fn some(&self) -> (Vec<E>, Result<()>) {
        let mut texts = Vec::new();
        let mut next = self.lines.recv().ok();
        while let Some(line) = next {
            match line {
                Ok(text) => texts.push(text),
                Err(error) => return (texts, Err(error)),
            }
            next = if texts.len() < AHEAD { self.lines.try_recv().ok() } else { None };
        }
        (texts, Ok(()))
    }
}

/// How the texts are written down; what the first line tells, where the name of the file does not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Lines,
    Jsonl,
}

struct Lines<R> {
    input: R,
    name: String,
    form: Option<Form>,
    number: u64,
    /// The first of the blank lines just before.
    blank: Option<u64>,
}

impl<R: BufRead> Lines<R> {
    /// The next text; blank lines at the end are its end, others are errors, as the answers would no longer be in line.
    fn next<E: Entry>(&mut self) -> Option<Result<E>> {
        loop {
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) => return None,
                Err(what) => return Some(Err(self.error(self.number, &what))),
            };
            if line.trim().is_empty() {
                self.blank.get_or_insert(self.number);
                continue;
            }
            if let Some(blank) = self.blank {
                return Some(Err(self.error(blank, "expected a text, got an empty line")));
            }
            return Some(self.entry(line).map_err(|what| self.error(self.number, &what)));
        }
    }

    fn error(&self, number: u64, what: &str) -> Error {
        Error::Data(format!("{}:{number}: {what}", self.name))
    }

    fn line(&mut self) -> std::result::Result<Option<String>, String> {
        let mut bytes = Vec::new();
        self.number += 1;
        // Room for the end of the line, and one byte to see that it is too long.
        let read = self.input.by_ref().take(LONGEST as u64 + 3).read_until(b'\n', &mut bytes);
        if read.map_err(|e| format!("cannot be read: {e}"))? == 0 {
            return Ok(None);
        }
        if bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
        }
        if bytes.len() > LONGEST {
            return Err("expected lines of at most 1 MiB, got a longer one".into());
        }
        let line = String::from_utf8(bytes).map_err(|e| format!("expected UTF-8, got {}", e.utf8_error()))?;
        match line.strip_prefix('\u{feff}') {
            Some(rest) if self.number == 1 => Ok(Some(rest.to_owned())),
            _ => Ok(Some(line)),
        }
    }

    fn entry<E: Entry>(&mut self, line: String) -> std::result::Result<E, String> {
        let form = match self.form {
            Some(form) => form,
            None => *self.form.insert(form_of(&line, E::KEY)?),
        };
        match form {
            Form::Lines => Ok(E::of_text(line)),
            Form::Jsonl => {
                E::of_object(serde_json::from_str(&line).map_err(|e| format!("expected a JSON object: {e}"))?)
            }
        }
    }
}

/// What a first line tells. Errors: it begins an array or a table.
fn form_of(line: &str, key: &str) -> std::result::Result<Form, String> {
    let convert = format!("; give the texts one a line, or as JSONL with the key `{key}`");
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(serde_json::Value::Object(_)) => return Ok(Form::Jsonl),
        Ok(serde_json::Value::Array(_)) => return Err(format!("a JSON array, which is not read here{convert}")),
        _ if matches!(line.trim(), "[" | "{") => return Err(format!("JSON over several lines{convert}")),
        _ => {}
    }
    for separator in ['\t', ','] {
        let fields: Vec<&str> = line.split(separator).map(|field| field.trim().trim_matches('"')).collect();
        let named = |name: &str| fields.contains(&name);
        let text = KEYS.iter().any(|(text, pair)| named(text) && pair.is_none_or(|pair| named(pair) || named("label")));
        if fields.len() > 1 && text && (named("label") || separator == '\t') {
            return Err(format!("the header of a table ({line:?}), which is not read here{convert}"));
        }
    }
    Ok(Form::Lines)
}

impl Entry for Texts {
    const KEY: &'static str = "text";

    fn of_text(text: String) -> Texts {
        (text, None)
    }

    fn of_object(object: serde_json::Map<String, serde_json::Value>) -> std::result::Result<Texts, String> {
        let get = |key: &str| match object.get(key) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(format!("expected a string for `{key}`, got {other}")),
        };
        let has = |key: &str| object.contains_key(key);
        // A pair before a single text, where the names of both are there.
        let whole = KEYS.iter().find(|(text, pair)| has(text) && pair.is_none_or(has));
        let alone = || KEYS.iter().find(|(text, _)| has(text) && ["text", "sentence"].contains(text));
        let Some((text, pair)) = whole.or_else(alone) else {
            let keys = object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let known: Vec<String> = KEYS
                .iter()
                .map(|(text, pair)| match pair {
                    Some(pair) => format!("`{text}` and `{pair}`"),
                    None => format!("`{text}`"),
                })
                .collect();
            return Err(format!("expected the key `text`, or those of a task ({}), got {keys}", known.join(", ")));
        };
        let first = get(text)?.ok_or_else(|| format!("expected a string for `{text}`, got null"))?;
        Ok((first, pair.map(get).transpose()?.flatten()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &'static str) -> std::result::Result<Vec<Texts>, String> {
        let incoming = Incoming::<Texts>::read(content.as_bytes(), "f".into(), None).unwrap();
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

    fn texts(texts: &[&str]) -> Vec<Texts> {
        texts.iter().map(|text| (text.to_string(), None)).collect()
    }

    #[test]
    fn texts_are_lines_or_json_objects() {
        assert_eq!(read("good film\n{not json}\n\n").unwrap(), texts(&["good film", "{not json}"]));
        assert_eq!(read("{sic} a film\nb").unwrap(), texts(&["{sic} a film", "b"]));
        let pairs = read("{\"text\": \"a\", \"pair\": \"b\"}\n{\"sentence\": \"c\", \"id\": 1}\n").unwrap();
        assert_eq!(pairs, [("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)]);
        let pair = read("{\"question\": \"q\", \"sentence\": \"s\"}").unwrap();
        assert_eq!(pair, [("q".to_owned(), Some("s".to_owned()))]);
        assert_eq!(read("\n").unwrap(), []);
    }

    #[test]
    fn only_line_ends_and_a_byte_order_mark_are_no_part_of_a_text() {
        assert_eq!(read("\u{feff} a \r\nb\t\n\u{a0}c ").unwrap(), texts(&[" a ", "b\t", "\u{a0}c "]));
        assert_eq!(read("\u{feff}{\"text\": \" a \"}\n").unwrap(), texts(&[" a "]));
    }

    #[test]
    fn other_forms_are_named() {
        for (content, form) in [
            ("[{\"text\": \"a\"}]", "JSON array"),
            ("[\n{\"text\": \"a\"}]", "several lines"),
            ("text,label\na,1", "table"),
            ("sentence\tlabel\na\t1", "table"),
        ] {
            let message = read(content).unwrap_err();
            assert!(message.starts_with("f:1: ") && message.contains(form) && message.contains("JSONL"), "{message}");
        }
        assert_eq!(read("the text, and a label\n").unwrap().len(), 1);
    }

    #[test]
    fn malformed_input_names_the_line() {
        let message = |content| read(content).unwrap_err();
        assert_eq!(message("a\n\nb"), "f:2: expected a text, got an empty line");
        assert!(
            message("{\"text\": \"a\"}\n{\"txt\": \"b\"}").starts_with("f:2: expected the key `text`, or those of")
        );
        assert_eq!(message("{\"text\": 1}"), "f:1: expected a string for `text`, got 1");
        assert!(message("{\"text\": \"a\"}\nb").starts_with("f:2: expected a JSON object"));
        let long: &'static str = Box::leak("x".repeat(LONGEST + 1).into_boxed_str());
        assert_eq!(message(long), "f:1: expected lines of at most 1 MiB, got a longer one");
    }
}
