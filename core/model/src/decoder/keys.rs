//! Typed access to the keys of a JSON file. Every error names file, key, value and what was expected.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fmt::Display;
use std::path::Path;

/// One object of a configuration file. `null` is the same as a missing key, except in [`Keys::is_null`].
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    path: &'a Path,
    /// The path of keys that leads here, with a final dot.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Keys { path, prefix: "", map }
    }

    /// The object under a key; `prefix` is the path to it with a final dot.
    pub fn object(&self, prefix: &'a str) -> Result<Option<Keys<'a>>> {
        let key = prefix.strip_prefix(self.prefix).unwrap_or(prefix).trim_end_matches('.');
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { path: self.path, prefix, map })),
            Some(_) => Err(self.invalid(key, "an object")),
        }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is present with the value `null`.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn error(&self, what: impl Display) -> Error {
        Error::Config(format!("{}: {what}", self.path.display()))
    }

    /// The error for a key with a wrong value.
    pub fn invalid(&self, key: &str, expected: impl Display) -> Error {
        let got = match self.get(key) {
            None => "nothing".to_string(),
            Some(value) => shorten(value.to_string()),
        };
        self.error(format_args!("`{}{key}` is {got}, expected {expected}", self.prefix))
    }

    /// Errors: the key has a value other than the supported one.
    pub fn only(&self, key: &str, supported: Value) -> Result<()> {
        match self.get(key) {
            // 1 and 1.0 differ as JSON values but are the same number here.
            Some(value)
                if *value != supported && (value.as_f64().is_none() || value.as_f64() != supported.as_f64()) =>
            {
                Err(self.invalid(
                    key,
                    format_args!("{supported}: other values change the computation in a way that is not supported"),
                ))
            }
            _ => Ok(()),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(key, "a string")),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.invalid(key, "true or false")),
        }
    }

    /// An integer in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.invalid(key, format_args!("an integer from 1 to {max}"))),
        }
    }

    pub fn required_size(&self, key: &str, max: usize) -> Result<usize> {
        self.size_or(key, max, None)
    }

    /// An integer in `1..=max`, or the default if the key is missing. Errors: neither.
    pub fn size_or(&self, key: &str, max: usize, default: Option<usize>) -> Result<usize> {
        self.size(key, max)?
            .or(default)
            .ok_or_else(|| self.error(format_args!("has no `{}{key}`; is this the model's own file?", self.prefix)))
    }

    /// A number above 0 that is finite as f32.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x as f32 > 0.0 && (x as f32).is_finite() => Ok(Some(x)),
            _ => Err(self.invalid(key, "a finite number above 0")),
        }
    }

    /// A token id. Negative numbers, which some files use for "none", count as missing.
    pub fn token(&self, key: &str, default: Option<u32>) -> Result<Option<u32>> {
        match self.get(key) {
            None if self.is_null(key) => Ok(None),
            None => Ok(default),
            Some(value) => self.token_id(key, value),
        }
    }

    /// Token ids, given as one number or a list.
    pub fn tokens(&self, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
        let Some(Value::Array(list)) = self.get(key) else {
            return Ok(self.token(key, default)?.into_iter().collect());
        };
        let ids: Result<Vec<_>> = list.iter().map(|value| self.token_id(key, value)).collect();
        Ok(ids?.into_iter().flatten().collect())
    }

    fn token_id(&self, key: &str, value: &Value) -> Result<Option<u32>> {
        if value.as_i64().is_some_and(|id| id < 0) {
            return Ok(None);
        }
        match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.invalid(key, "a token id")),
        }
    }
}

/// Shortens a value so that it does not bury the message.
fn shorten(text: String) -> String {
    if text.chars().count() <= 120 {
        return text;
    }
    text.chars().take(117).chain("...".chars()).collect()
}
