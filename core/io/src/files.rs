//! Opens untrusted files: only regular ones, as a pipe might never end, and within size limits. Publishes finished
//! files so that neither a crash nor a power cut leaves a partial one.

use memmap2::Mmap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::path::Path;

/// Size limit of a configuration, an index or a manifest; the largest published ones have about 10 MB.
pub const CONFIGURATION: u64 = 32 << 20;
/// Size limit of a `tokenizer.json`; the largest published ones have about 35 MB.
pub const TOKENIZER: u64 = 256 << 20;
/// Size limit of a `metrics.jsonl`: enough for millions of steps.
pub const LOG: u64 = 1 << 30;

/// Opens a regular file, following links.
///
/// Errors: those of the system; a directory, a pipe or a device.
pub fn open(path: &Path) -> io::Result<File> {
    // Checked before opening, as opening a pipe waits for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "expected a regular file, got a directory or a device"));
    }
    File::open(path)
}

/// Reads a regular file of at most `limit` bytes.
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

/// As [`read`], for text.
///
/// Errors: those of [`read`]; bytes that are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("expected UTF-8: {e}")))
}

/// Releases the memory of mapped pages that have been read; they are read again when needed.
pub fn forget(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: pages of a read-only file map hold nothing that is not in the file.
        let advised =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        // It is advice: where it is not taken, memory is only given back later.
        let _ = advised;
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

/// Creates a directory and its parents durably.
///
/// Errors: those of the system.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dirs(parent)?;
    }
    match fs::create_dir(dir) {
        // Another process created it first.
        Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_parent(dir),
    }
}

/// Renames a finished file or directory. Its contents are synced before, and its new name after.
///
/// Errors: those of the system.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    sync(from)?;
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Syncs a file, or a directory with its contents, to disk.
fn sync(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?;
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            sync(&entry?.path())?;
        }
        return sync_dir(path);
    }
    // Windows syncs only what may be written.
    if kind.is_file() { File::options().write(true).open(path)?.sync_all() } else { Ok(()) }
}

/// Syncs the name of a file or directory to disk.
///
/// Errors: those of the system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Removes a file, or a directory with its contents, if it exists.
///
/// Errors: those of the system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_has_its_new_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (part, whole) = (dir.path().join("a/b/.part"), dir.path().join("a/b/whole"));
        create_dirs(&part).unwrap();
        create_dirs(&part).unwrap();
        fs::write(part.join("f"), "1").unwrap();
        publish(&part, &whole).unwrap();
        assert!(!part.exists() && fs::read(whole.join("f")).unwrap() == b"1");
        for path in [whole.join("f"), whole.clone(), whole] {
            remove(&path).unwrap();
            assert!(!path.exists());
        }
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_dirs(&dir.path().join("file/below")).is_err());
    }

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
