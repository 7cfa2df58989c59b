//! Lines of a text, one at a time, in bounded memory.

use crate::input::Input;
use sparta_plugin::Error;
use std::io::{BufRead, Read};
use std::path::Path;

/// The most bytes of a text, and of a line.
pub const MAX_LINE: usize = 1 << 20;

pub struct Lines {
    input: Input,
    number: u64,
}

impl Lines {
    /// # Errors
    /// As [`Input::open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self::new(Input::open(path)?))
    }

    pub fn new(input: Input) -> Self {
        Lines { input, number: 0 }
    }

    /// What messages call the text.
    pub fn name(&self) -> &str {
        &self.input.name
    }

    /// The next line and its 1-based number, without its line end; `None` at the end.
    ///
    /// # Errors
    /// Reading fails, the line is longer than [`MAX_LINE`] or is not UTF-8.
    pub fn next_line(&mut self) -> Result<Option<(u64, String)>, Error> {
        let mut bytes = Vec::new();
        // Two more bytes for the line end, and one more to notice a line that is too long.
        let limit = MAX_LINE as u64 + 3;
        let read = self.input.reader.by_ref().take(limit).read_until(b'\n', &mut bytes);
        let number = self.number + 1;
        let fail = |what: String| Error(format!("{}:{number}: {what}", self.input.name));
        if read.map_err(|e| fail(format!("cannot be read: {e}")))? == 0 {
            return Ok(None);
        }
        self.number = number;
        if bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
        }
        if bytes.len() > MAX_LINE {
            return Err(fail("expected lines of at most 1 MiB, got a longer one".to_owned()));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let column = e.utf8_error().valid_up_to() + 1;
            fail(format!(
                "expected UTF-8, got an invalid byte at position {column} of the line; convert the file to UTF-8"
            ))
        })?;
        Ok(Some((number, text)))
    }

    /// Like [`Lines::next_line`], but ignores blank lines at the end of the text.
    ///
    /// # Errors
    /// As [`Lines::next_line`], and a blank line between others.
    pub fn next_filled(&mut self) -> Result<Option<(u64, String)>, Error> {
        let mut blank = None;
        while let Some((number, line)) = self.next_line()? {
            if line.trim().is_empty() {
                blank.get_or_insert(number);
            } else if let Some(blank) = blank {
                let name = &self.input.name;
                return Err(Error(format!("{name}:{blank}: expected a row, got a blank line; remove it")));
            } else {
                return Ok(Some((number, line)));
            }
        }
        Ok(None)
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn lines(content: &[u8]) -> Result<Vec<String>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, content).unwrap();
        let mut lines = Lines::open(&path)?;
        let mut all = Vec::new();
        while let Some((number, line)) = lines.next_filled()? {
            assert_eq!(number, all.len() as u64 + 1);
            all.push(line);
        }
        Ok(all)
    }

    #[test]
    fn line_ends_byte_order_mark_and_blank_ends_are_tolerated() {
        assert_eq!(lines(b"\xef\xbb\xbfa\r\nb \n").unwrap(), ["a", "b "]);
        assert_eq!(lines(b"a\nb").unwrap(), ["a", "b"]);
        assert_eq!(lines(b"a\n\n\r\n \n").unwrap(), ["a"]);
        assert_eq!(lines(b"").unwrap(), [""; 0]);
        assert_eq!(lines("a\n\u{feff}b".as_bytes()).unwrap(), ["a", "\u{feff}b"]);
    }

    #[test]
    fn errors_name_the_line() {
        let blank = lines(b"a\n\n\nb\n").unwrap_err().0;
        assert!(blank.ends_with("f:2: expected a row, got a blank line; remove it"), "{blank}");
        let utf8 = lines(b"a\nb\xffc\n").unwrap_err().0;
        assert!(utf8.contains("f:2: expected UTF-8, got an invalid byte at position 2"), "{utf8}");
    }

    #[test]
    fn a_line_of_one_mebibyte_is_the_longest() {
        let mut content = vec![b'x'; MAX_LINE];
        content.extend_from_slice(b"\r\n");
        assert_eq!(lines(&content).unwrap()[0].len(), MAX_LINE);
        content.insert(0, b'x');
        let long = lines(&content).unwrap_err().0;
        assert!(long.ends_with("f:1: expected lines of at most 1 MiB, got a longer one"), "{long}");
    }
}
