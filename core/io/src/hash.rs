//! Hashes that identify files and models.

use crate::weights::Weights;
use crate::{Error, Result, files};
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes hashed at each end of a tensor: enough to distinguish models without reading them whole.
const SAMPLE: usize = 4096;

/// Identifies a base model: SHA-256 over the names, types, shapes and first and last bytes of all tensors except a
/// classification head.
pub fn fingerprint(weights: &Weights) -> String {
    let mut hash = Sha256::new();
    for name in weights.names().filter(|name| *name != "score.weight") {
        if let Some(view) = weights.get(name) {
            hash.update(format!("{name} {} {:?}\n", view.format(), view.shape));
            hash.update(&view.raw()[..view.raw().len().min(SAMPLE)]);
            hash.update(&view.raw()[view.raw().len().saturating_sub(SAMPLE)..]);
        }
    }
    hex(&hash.finalize())
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file, in hexadecimal.
pub fn hash_file(path: &Path) -> Result<String> {
    hash_open(path, files::open(path).map_err(Error::io(path))?)
}

/// SHA-256 of an open file from its beginning, in hexadecimal.
pub fn hash_open(path: &Path, mut file: impl Read + Seek) -> Result<String> {
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hex(&hash.finalize()))
}
