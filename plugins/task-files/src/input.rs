//! The text of a file or of standard input as UTF-8. The source is UTF-8 with or without a byte-order mark, or UTF-16
//! with a byte-order mark.

use sparta_files::{self as files, File};
use sparta_plugin::Error;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

/// Text that may not be valid UTF-8, and what messages call it.
pub struct Input {
    pub name: String,
    pub reader: Box<dyn BufRead + Send>,
}

impl Input {
    /// # Errors
    /// As [`open`]; UTF-16 without a byte-order mark.
    pub fn open(path: &Path) -> Result<Input, Error> {
        Self::new(path.display().to_string(), open(path)?)
    }

    /// # Errors
    /// Reading fails; UTF-16 without a byte-order mark.
    pub fn new(name: String, mut raw: impl Read + Send + 'static) -> Result<Input, Error> {
        let mut mark = Vec::new();
        // Reads no more than needed: someone typing the text may be waiting for an answer.
        while mark.len() < 2 || mark == [0xef, 0xbb] {
            let read = raw.by_ref().take(1).read_to_end(&mut mark);
            if read.map_err(|e| Error(format!("{name}: cannot be read: {e}")))? == 0 {
                break;
            }
        }
        let reader: Box<dyn BufRead + Send> = match mark[..] {
            [0xef, 0xbb, 0xbf] => Box::new(BufReader::new(raw)),
            [0xff, 0xfe] => Box::new(BufReader::new(Utf16::new(raw, u16::from_le_bytes))),
            [0xfe, 0xff] => Box::new(BufReader::new(Utf16::new(raw, u16::from_be_bytes))),
            [0, _] | [_, 0] => {
                return Err(Error(format!(
                    "{name}:1: expected text, got a zero byte at its beginning: it is UTF-16 without a byte-order \
                     mark, or not text; convert the file to UTF-8"
                )));
            }
            _ => Box::new(BufReader::new(Cursor::new(mark).chain(raw))),
        };
        Ok(Input { name, reader })
    }
}

/// Opens a regular file or a link to one: a pipe or a device might never end.
///
/// # Errors
/// It is not a regular file, or cannot be opened.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    let fail = |what: String| Error(format!("{}: cannot be opened: {what}", path.display()));
    files::open(path).map_err(|e| fail(e.to_string()))
}

/// UTF-16 as UTF-8.
struct Utf16<R> {
    raw: R,
    unit: fn([u8; 2]) -> u16,
    /// Bytes of an incomplete unit.
    rest: Vec<u8>,
    /// The first half of a surrogate pair whose second half is still to come.
    high: Option<u16>,
    text: VecDeque<u8>,
}

/// Bytes decoded at a time.
const CHUNK: usize = 8192;

impl<R: Read> Utf16<R> {
    fn new(raw: R, unit: fn([u8; 2]) -> u16) -> Self {
        Utf16 { raw, unit, rest: Vec::new(), high: None, text: VecDeque::new() }
    }

    /// Decodes more; false at the end.
    fn decode(&mut self) -> io::Result<bool> {
        let wrong = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("expected UTF-16, got {what}"));
        let mut chunk = [0; CHUNK];
        let read = self.raw.read(&mut chunk)?;
        if read == 0 {
            return match self.rest.is_empty() && self.high.is_none() {
                true => Ok(false),
                false => Err(wrong("half a character at the end")),
            };
        }
        self.rest.extend(&chunk[..read]);
        let (pairs, odd) = self.rest.as_chunks::<2>();
        let mut units: Vec<u16> =
            self.high.take().into_iter().chain(pairs.iter().map(|&pair| (self.unit)(pair))).collect();
        self.rest = odd.to_vec();
        self.high = units.pop_if(|last| (0xd800..0xdc00).contains(last));
        for c in char::decode_utf16(units) {
            let c = c.map_err(|_| wrong("half a surrogate pair"))?;
            self.text.extend(c.encode_utf8(&mut [0; 4]).bytes());
        }
        Ok(true)
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.text.is_empty() {
            if !self.decode()? {
                return Ok(0);
            }
        }
        self.text.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, String> {
        let mut text = String::new();
        let input = Input::new("f".into(), Cursor::new(bytes.to_vec())).map_err(|e| e.0);
        input?.reader.read_to_string(&mut text).map_err(|e| e.to_string())?;
        Ok(text)
    }

    #[test]
    fn encodings_are_recognised_by_their_mark() {
        let text = format!("é𝄞\r\n{}", "a𝄞".repeat(CHUNK));
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = [0xfeff].iter().chain(&units).flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = [0xfeff].iter().chain(&units).flat_map(|unit| unit.to_be_bytes()).collect();
        for bytes in [text.as_bytes(), format!("\u{feff}{text}").as_bytes(), &little, &big] {
            assert!(read(bytes).unwrap() == text);
        }
        for short in ["", "a", "ab", "\u{feff}"] {
            assert_eq!(read(short.as_bytes()).unwrap(), short.trim_start_matches('\u{feff}'));
        }
        assert_eq!(read(&[0xff, 0xfe]).unwrap(), "");
    }

    #[test]
    fn broken_utf_16_is_an_error() {
        for bytes in [&[0xff, 0xfe, 0x61][..], &[0xff, 0xfe, 0x00, 0xd8], &[0xff, 0xfe, 0x00, 0xdc, 0x61, 0x00]] {
            assert!(read(bytes).unwrap_err().contains("expected UTF-16"));
        }
        assert!(read(b"a\0b\0").unwrap_err().contains("UTF-16 without a byte-order mark"));
    }
}
