//! Keys and values of a GGUF file. Lists are decoded only on request, as a vocabulary has hundreds of thousands of
//! texts.

use std::collections::BTreeMap;

/// Size limit of keys, values and the table in bytes; the largest published vocabularies take 20 MB.
const LARGEST: usize = 256 << 20;

/// The most elements of a list; the largest published vocabularies have about 300,000.
const MOST_ELEMENTS: usize = 1 << 24;

type Result<T> = std::result::Result<T, String>;

/// Reads the start of a file; reading beyond its end is an error.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let Some(taken) = taken else {
            return Err(format!(
                "is truncated or damaged: its header needs {count} bytes from byte {} on, but the file has {}; \
                 download it again",
                self.at,
                self.bytes.len()
            ));
        };
        self.at += taken.len();
        if self.at > LARGEST {
            return Err(format!("has a header of more than {} MiB: it is damaged; download it again", LARGEST >> 20));
        }
        Ok(taken)
    }

    pub(super) fn skip(&mut self, count: u64) -> Result<()> {
        self.take(count).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let (length, at) = (self.u64()?, self.at);
        let bytes = self.take(length)?;
        let text = str::from_utf8(bytes).map_err(|_| format!("has a text at byte {at} that is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

/// A value other than a list.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    Unsigned(u64),
    Signed(i64),
    /// With the digits of the stored f32, not those of the equal f64.
    Float(f64),
    Flag(bool),
    Text(String),
}

/// Type codes of values.
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

fn scalar(reader: &mut Reader, kind: u32) -> Result<Scalar> {
    Ok(match kind {
        0 => Scalar::Unsigned(u8::from_le_bytes(reader.array()?).into()),
        1 => Scalar::Signed(i8::from_le_bytes(reader.array()?).into()),
        2 => Scalar::Unsigned(u16::from_le_bytes(reader.array()?).into()),
        3 => Scalar::Signed(i16::from_le_bytes(reader.array()?).into()),
        4 => Scalar::Unsigned(u32::from_le_bytes(reader.array()?).into()),
        5 => Scalar::Signed(i32::from_le_bytes(reader.array()?).into()),
        6 => {
            let value = f32::from_le_bytes(reader.array()?);
            // The f32 nearest to 1e-5 stands for 1e-5.
            Scalar::Float(value.to_string().parse().unwrap_or(f64::from(value)))
        }
        FLAG => Scalar::Flag(reader.array::<1>()? != [0]),
        TEXT => Scalar::Text(reader.text()?),
        10 => Scalar::Unsigned(reader.u64()?),
        11 => Scalar::Signed(i64::from_le_bytes(reader.array()?)),
        12 => Scalar::Float(f64::from_le_bytes(reader.array()?)),
        _ => return Err(format!("has a value of type {kind} at byte {}, which GGUF does not define", reader.at)),
    })
}

/// Size of a scalar in bytes; `None` for texts.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | FLAG => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A list in encoded form.
#[derive(Debug)]
struct List {
    kind: u32,
    count: usize,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Value {
    /// With its encoded form.
    Scalar(Scalar, Vec<u8>),
    List(List),
}

/// The keys and values of a file.
#[derive(Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn read(reader: &mut Reader, count: u64) -> Result<Metadata> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = reader.text()?;
            let value = match reader.u32()? {
                LIST => Value::List(list(reader).map_err(|what| format!("{what} (`{key}`)"))?),
                kind => {
                    let begin = reader.at - 4;
                    let scalar = scalar(reader, kind).map_err(|what| format!("{what} (`{key}`)"))?;
                    Value::Scalar(scalar, reader.bytes[begin..reader.at].to_vec())
                }
            };
            if values.contains_key(&key) {
                return Err(format!("has the key `{key}` twice: it is damaged; download it again"));
            }
            values.insert(key, value);
        }
        Ok(Metadata(values))
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn scalar(&self, key: &str) -> Option<&Scalar> {
        match self.0.get(key)? {
            Value::Scalar(scalar, _) => Some(scalar),
            Value::List(_) => None,
        }
    }

    /// Type and value in encoded form, to be copied into another file.
    pub fn encoded(&self, key: &str) -> Option<Vec<u8>> {
        Some(match self.0.get(key)? {
            Value::Scalar(_, bytes) => bytes.clone(),
            Value::List(List { kind, count, bytes }) => {
                [&LIST.to_le_bytes()[..], &kind.to_le_bytes(), &(*count as u64).to_le_bytes(), bytes].concat()
            }
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        let got = match self.scalar(key) {
            Some(value) => format!("{value:?}"),
            None => "a list".to_owned(),
        };
        format!("`{key}` is {got}, expected {expected}")
    }

    /// A number of at least 0.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        match self.scalar(key) {
            None if !self.0.contains_key(key) => Ok(None),
            Some(Scalar::Unsigned(n)) => Ok(Some(*n)),
            Some(Scalar::Signed(n)) if *n >= 0 => Ok(Some(n.unsigned_abs())),
            _ => Err(self.wrong(key, "a number of at least 0")),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.scalar(key) {
            Some(Scalar::Float(x)) => Ok(Some(*x)),
            _ => self.count(key).map(|n| n.map(|n| n as f64)).map_err(|_| self.wrong(key, "a number")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.scalar(key) {
            None if !self.0.contains_key(key) => Ok(None),
            Some(Scalar::Flag(flag)) => Ok(Some(*flag)),
            _ => Err(self.wrong(key, "true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.scalar(key) {
            None if !self.0.contains_key(key) => Ok(None),
            Some(Scalar::Text(text)) => Ok(Some(text)),
            _ => Err(self.wrong(key, "a text")),
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.elements(key, "texts", |scalar| match scalar {
            Scalar::Text(text) => Some(text),
            _ => None,
        })
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.elements(key, "numbers", |scalar| match scalar {
            Scalar::Float(x) => Some(x),
            Scalar::Unsigned(n) => Some(n as f64),
            Scalar::Signed(n) => Some(n as f64),
            _ => None,
        })
    }

    fn elements<T>(&self, key: &str, what: &str, of: impl Fn(Scalar) -> Option<T>) -> Result<Option<Vec<T>>> {
        let list = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::List(list)) => list,
            Some(Value::Scalar(..)) => return Err(self.wrong(key, &format!("a list of {what}"))),
        };
        if list.count > MOST_ELEMENTS {
            return Err(format!("`{key}` has {} elements, at most {MOST_ELEMENTS} are supported", list.count));
        }
        let mut reader = Reader::new(&list.bytes);
        let mut out = Vec::with_capacity(list.count);
        for _ in 0..list.count {
            match of(scalar(&mut reader, list.kind)?) {
                Some(element) => out.push(element),
                None => return Err(format!("`{key}` is not a list of {what}")),
            }
        }
        Ok(Some(out))
    }
}

/// A list, whose elements are checked but not decoded.
fn list(reader: &mut Reader) -> Result<List> {
    let (kind, count) = (reader.u32()?, reader.u64()?);
    let begin = reader.at;
    match width(kind) {
        Some(width) => reader.skip(count.saturating_mul(width))?,
        None if kind == TEXT => {
            for _ in 0..count {
                let length = reader.u64()?;
                reader.skip(length)?;
            }
        }
        None => return Err(format!("has a list of type {kind} at byte {begin}, which is not supported")),
    }
    // The loop, or the bytes read, have bounded the count.
    Ok(List { kind, count: count as usize, bytes: reader.bytes[begin..reader.at].to_vec() })
}
