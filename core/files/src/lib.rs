//! Files of the system, and files in memory for platforms without a file system: a path whose first component is [`MEMORY`] is
//! in memory.
//!
//! Opens untrusted files: only regular ones, as a pipe might never end, and within size limits. Publishes finished files so
//! that neither a crash nor a power cut leaves a partial one.

mod disk;
mod file;
mod map;
mod memory;

pub use file::File;
pub use map::Map;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The first component of paths in memory. Such files live until they are removed or the process ends.
pub const MEMORY: &str = "memory:";

/// Size limit of a configuration, an index or a manifest; the largest published ones have about 10 MB.
pub const CONFIGURATION: u64 = 32 << 20;
/// Size limit of a `tokenizer.json`; the largest published ones have about 35 MB.
pub const TOKENIZER: u64 = 256 << 20;
/// Size limit of a `metrics.jsonl`: enough for millions of steps.
pub const LOG: u64 = 1 << 30;

/// What is at a path, following links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this many bytes.
    File(u64),
    Directory,
    /// A pipe, a device ...
    Other,
}

/// Errors: nothing is there; those of the system.
pub fn kind(path: &Path) -> io::Result<Kind> {
    match memory::is_in(path) {
        true => memory::kind(path),
        false => disk::kind(path),
    }
}

pub fn is_file(path: &Path) -> bool {
    matches!(kind(path), Ok(Kind::File(_)))
}

pub fn is_dir(path: &Path) -> bool {
    matches!(kind(path), Ok(Kind::Directory))
}

pub fn exists(path: &Path) -> bool {
    kind(path).is_ok()
}

/// Opens a regular file, following links.
///
/// Errors: those of the system; a directory, a pipe or a device.
pub fn open(path: &Path) -> io::Result<File> {
    match memory::is_in(path) {
        true => memory::open(path).map(File::in_memory),
        false => disk::open(path).map(File::System),
    }
}

/// As [`open`], for readers that need a file of the system.
///
/// Errors: those of [`open`]; a file in memory.
pub fn open_on_disk(path: &Path) -> io::Result<std::fs::File> {
    match memory::is_in(path) {
        true => Err(io::Error::new(ErrorKind::Unsupported, "expected a file of the system, got one in memory")),
        false => disk::open(path),
    }
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

/// The paths of a directory's entries, sorted.
///
/// Errors: those of the system.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match memory::is_in(dir) {
        true => memory::list(dir),
        false => disk::list(dir),
    }
}

/// The absolute path with all links resolved.
///
/// Errors: those of the system; there is nothing.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    match memory::is_in(path) {
        true => memory::kind(path).map(|_| path.to_owned()),
        false => path.canonicalize(),
    }
}

/// Whether a path is a link itself.
pub fn is_link(path: &Path) -> bool {
    !memory::is_in(path) && path.is_symlink()
}

/// Writes a whole file in memory, replacing an existing one; parent directories are created.
///
/// Errors: a path that is not in memory; a directory in its place.
pub fn put(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    memory::put(path, bytes)
}

/// Copies a file.
///
/// Errors: those of [`open`] and [`File::create`].
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut open(from)?, &mut File::create(to)?).map(|_| ())
}

/// A temporary name beside `path` that no other process uses: `.NAME.ID.tmp`. `None`: the path names no file.
pub fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    match memory::is_in(path) {
        // Files in memory belong to one process.
        true => name.push(".tmp"),
        false => name.push(format!(".{}.tmp", std::process::id())),
    }
    Some(path.with_file_name(name))
}

/// Creates a directory and its parents durably.
///
/// Errors: those of the system.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    match memory::is_in(dir) {
        true => memory::create_dirs(dir),
        false => disk::create_dirs(dir),
    }
}

/// Renames a file or directory; an existing file of the new name is replaced.
///
/// Errors: those of the system; between the system and memory.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match (memory::is_in(from), memory::is_in(to)) {
        (true, true) => memory::rename(from, to),
        (false, false) => std::fs::rename(from, to),
        _ => Err(io::Error::new(ErrorKind::CrossesDevices, "expected both paths in memory or none")),
    }
}

/// Renames a finished file or directory. Its contents are synced before, and its new name after.
///
/// Errors: those of the system.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if !memory::is_in(from) {
        disk::sync(from)?;
    }
    rename(from, to)?;
    sync_parent(to)
}

/// Syncs the name of a file or directory to disk.
///
/// Errors: those of the system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match memory::is_in(path) {
        true => Ok(()),
        false => disk::sync_parent(path),
    }
}

/// Removes a file, or a directory with its contents, if it exists.
///
/// Errors: those of the system.
pub fn remove(path: &Path) -> io::Result<()> {
    match memory::is_in(path) {
        true => memory::remove(path),
        false => disk::remove(path),
    }
}

/// Removes an empty directory.
///
/// Errors: those of the system; it is not empty.
pub fn remove_empty(dir: &Path) -> io::Result<()> {
    if !memory::is_in(dir) {
        return std::fs::remove_dir(dir);
    }
    match memory::list(dir)?.is_empty() {
        true => memory::remove(dir),
        false => Err(ErrorKind::DirectoryNotEmpty.into()),
    }
}

#[cfg(test)]
mod tests;
