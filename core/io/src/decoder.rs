//! `config.json` of a model directory.

use crate::files;
use serde_json::{Map, Value};
use sparta_model::{Decoder, Error, Result};
use std::path::Path;

/// Reads the `config.json` of a model directory.
///
/// Errors: an unreadable file; whatever [`Decoder::parse`] refuses.
pub fn open(dir: &Path) -> Result<Decoder> {
    read(&dir.join("config.json"))
}

/// As [`open`], of a file of any name.
pub fn read(path: &Path) -> Result<Decoder> {
    let text = files::read(path, files::CONFIGURATION).map_err(Error::io(path))?;
    let map: Map<String, Value> = serde_json::from_slice(&text)
        .map_err(|e| Error::Config(format!("{}: not a JSON object: {e}", path.display())))?;
    Decoder::parse(path, &map)
}
