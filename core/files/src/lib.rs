//! Files of the system, and files in memory for programs without one: a path whose first part is [`MEMORY`] is in memory,
//! any other the system's.
//!
//! Opens untrusted files: regular ones only, as a pipe would never end, and small enough for what they are. And gives
//! finished files their names, so that neither a crash nor a power cut leaves half of one.

mod disk;
mod file;
mod map;
mod memory;

pub use file::File;
pub use map::Map;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The first part of paths in memory. They live as long as the process, or until they are removed.
pub const MEMORY: &str = "memory:";

/// Bytes of a configuration, an index or a manifest; those of the largest published models have some 10 MB.
pub const CONFIGURATION: u64 = 32 << 20;
/// Bytes of a `tokenizer.json`; the largest published ones have some 35 MB.
pub const TOKENIZER: u64 = 256 << 20;
/// Bytes of a `metrics.jsonl`: millions of steps.
pub const LOG: u64 = 1 << 30;

/// What is at a path, behind links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this many bytes.
    File(u64),
    Directory,
    /// A pipe, a device ...
    Other,
}

/// Errors: there is nothing; those of the system.
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

/// Opens a regular file, also behind a link.
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

/// Paths of what is in a directory, sorted.
///
/// Errors: those of the system.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match memory::is_in(dir) {
        true => memory::list(dir),
        false => disk::list(dir),
    }
}

/// The one name of a path, without links.
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

/// Writes a file in memory, whole, in place of what was there; the directories above it come with it.
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

/// The name of a file beside `path` that no other process writes to: `.NAME.ID.tmp`. `None`: the path names no file.
pub fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    match memory::is_in(path) {
        // Memory is one process's.
        true => name.push(".tmp"),
        false => name.push(format!(".{}.tmp", std::process::id())),
    }
    Some(path.with_file_name(name))
}

/// Creates a directory with those above it, which then survive a power cut.
///
/// Errors: those of the system.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    match memory::is_in(dir) {
        true => memory::create_dirs(dir),
        false => disk::create_dirs(dir),
    }
}

/// Renames a file or directory, in place of a file of the new name.
///
/// Errors: those of the system; between the system and memory.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match (memory::is_in(from), memory::is_in(to)) {
        (true, true) => memory::rename(from, to),
        (false, false) => std::fs::rename(from, to),
        _ => Err(io::Error::new(ErrorKind::CrossesDevices, "expected both paths in memory or none")),
    }
}

/// Renames a finished file or directory. All of it is on disk before, and the new name after.
///
/// Errors: those of the system.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if !memory::is_in(from) {
        disk::sync(from)?;
    }
    rename(from, to)?;
    sync_parent(to)
}

/// Makes the name of a file or directory safe on disk.
///
/// Errors: those of the system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match memory::is_in(path) {
        true => Ok(()),
        false => disk::sync_parent(path),
    }
}

/// Removes a file, or a directory and what is in it; nothing where there is none.
///
/// Errors: those of the system.
pub fn remove(path: &Path) -> io::Result<()> {
    match memory::is_in(path) {
        true => memory::remove(path),
        false => disk::remove(path),
    }
}

/// Removes a directory that is empty.
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
