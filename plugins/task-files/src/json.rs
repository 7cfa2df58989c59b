//! A JSON array of objects, or a sequence of objects, over any number of lines. One object is in memory at a time.

use crate::input::Input;
use crate::jsonl;
use crate::table::{Record, Records};
use sparta_plugin::Error;
use std::io::Read;

/// The most bytes of an object.
const MAX_OBJECT: usize = 16 << 20;

/// The objects. Anything else is an error of the iterator.
pub(crate) fn records(input: Input) -> Records {
    let mut objects = Objects { input, line: 1, state: State::Start };
    Box::new(std::iter::from_fn(move || objects.next().transpose()))
}

struct Objects {
    input: Input,
    /// The line of the next byte, counted from 1.
    line: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    /// In an array: before its first object (where it may end) or after a comma.
    Array {
        first: bool,
    },
    /// Without an array around the objects.
    Stream,
    End,
}

impl Objects {
    fn next(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let byte = self.after_spaces()?;
            match (self.state, byte) {
                (State::Start, Some(b'[')) => self.state = State::Array { first: true },
                (State::Start, Some(b'{')) | (State::Stream, Some(b'{')) => {
                    self.state = State::Stream;
                    return self.object().map(Some);
                }
                (State::Array { .. }, Some(b'{')) => {
                    let record = self.object()?;
                    self.state = match self.after_spaces()? {
                        Some(b',') => State::Array { first: false },
                        Some(b']') => State::End,
                        other => return Err(self.unexpected("`,` or `]` after an object", other)),
                    };
                    return Ok(Some(record));
                }
                (State::Array { first: true }, Some(b']')) => self.state = State::End,
                (State::Start | State::Stream | State::End, None) => return Ok(None),
                (State::End, byte) => return Err(self.unexpected("nothing after the array", byte)),
                (State::Start, byte) => return Err(self.unexpected("an array of objects, or objects", byte)),
                (_, byte) => return Err(self.unexpected("an object", byte)),
            }
        }
    }

    fn unexpected(&self, expected: &str, got: Option<u8>) -> Error {
        let got = got.map_or("the end".into(), |byte| format!("`{}`", char::from(byte).escape_default()));
        self.fail(self.line, &format!("expected {expected}, got {got}"))
    }

    fn fail(&self, line: u64, what: &str) -> Error {
        Error(format!("{}:{line}: {what}", self.input.name))
    }

    fn byte(&mut self) -> Result<Option<u8>, Error> {
        let mut byte = [0];
        let read = self.input.reader.read(&mut byte);
        match read.map_err(|e| self.fail(self.line, &format!("cannot be read: {e}")))? {
            0 => Ok(None),
            _ => {
                self.line += u64::from(byte[0] == b'\n');
                Ok(Some(byte[0]))
            }
        }
    }

    fn after_spaces(&mut self) -> Result<Option<u8>, Error> {
        loop {
            match self.byte()? {
                Some(byte) if byte.is_ascii_whitespace() => {}
                byte => return Ok(byte),
            }
        }
    }

    /// The object whose opening brace has been read.
    fn object(&mut self) -> Result<Record, Error> {
        let number = self.line;
        let (mut bytes, mut depth) = (vec![b'{'], 1);
        let (mut in_string, mut escaped) = (false, false);
        while depth > 0 {
            let Some(byte) = self.byte()? else { return Err(self.fail(number, "an object is not closed")) };
            bytes.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'{' if !in_string => depth += 1,
                b'}' if !in_string => depth -= 1,
                _ => {}
            }
            if bytes.len() > MAX_OBJECT {
                return Err(self.fail(number, "expected objects of at most 16 MiB, got a larger one"));
            }
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| self.fail(number, "expected UTF-8, got an invalid byte; convert the file to UTF-8"))?;
        let values = jsonl::object(&text).map_err(|what| self.fail(number, &what))?;
        Ok(Record { number, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::io::Cursor;

    fn read(content: &str) -> Result<Vec<(u64, Value)>, String> {
        let input = Input::new("f.json".into(), Cursor::new(content.as_bytes().to_vec())).unwrap();
        let record = |record: Result<Record, Error>| record.map(|r| (r.number, Value::Object(r.values)));
        records(input).map(record).collect::<Result<_, _>>().map_err(|e| e.0)
    }

    #[test]
    fn arrays_and_streams_of_objects() {
        let expected = [(2, json!({"t": "a}\"", "n": {"x": [1]}})), (4, json!({"t": "b"}))];
        assert_eq!(read("[\n{\"t\": \"a}\\\"\",\n \"n\": {\"x\": [1]}},\n{\"t\": \"b\"} ]\n").unwrap(), expected);
        assert_eq!(read("\n{\"t\": \"a}\\\"\",\n \"n\": {\"x\": [1]}}\n{\"t\": \"b\"}").unwrap(), expected);
        assert_eq!(read("[]").unwrap(), []);
        assert_eq!(read(" ").unwrap(), []);
    }

    #[test]
    fn a_value_that_is_not_an_object_is_an_error() {
        for (content, what) in [
            ("[1]", "f.json:1: expected an object, got `1`"),
            ("text", "f.json:1: expected an array of objects, or objects, got `t`"),
            ("[{}\n{}]", "f.json:2: expected `,` or `]` after an object, got `{`"),
            ("[{},]", "expected an object, got `]`"),
            ("[{}", "got the end"),
            ("[{}] x", "expected nothing after the array, got `x`"),
            ("{\"a\": 1", "f.json:1: an object is not closed"),
            ("{\"a\": }", "f.json:1: expected a JSON object, got `{\"a\": }`"),
        ] {
            let message = read(content).unwrap_err();
            assert!(message.contains(what), "{message}");
        }
    }
}
