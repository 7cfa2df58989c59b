//! Opening files of strangers: regular ones only, as a pipe would never end, and small enough for what they are.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Bytes of a configuration, an index or a manifest; those of the largest published models have some 10 MB.
pub const CONFIGURATION: u64 = 32 << 20;
/// Bytes of a `tokenizer.json`; the largest published ones have some 35 MB.
pub const TOKENIZER: u64 = 256 << 20;
/// Bytes of a `metrics.jsonl`: millions of steps.
pub const LOG: u64 = 1 << 30;

/// Opens a regular file, also behind a link.
///
/// Errors: those of the system; a directory, a pipe or a device.
pub fn open(path: &Path) -> io::Result<File> {
    // Before opening: to open a pipe is to wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "expected a regular file, got a directory or a device"));
    }
    File::open(path)
}

/// The bytes of a regular file of at most `limit` bytes.
///
/// Errors: those of [`open`]; a larger file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let what = format!("expected at most {} MiB, the file is larger", limit >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// As [`read`], as a text.
///
/// Errors: those of [`read`]; bytes that are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("expected UTF-8: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert_eq!(read(&file, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(dir.path(), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(read(&dir.path().join("g"), 4).unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(&file, b"\xff").unwrap();
        assert_eq!(read_text(&file, 4).unwrap_err().kind(), ErrorKind::InvalidData);
        #[cfg(unix)]
        assert_eq!(read(Path::new("/dev/zero"), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
