//! The tree of files in memory: one for the process.

use crate::{Kind, MEMORY};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bytes of a file. A map keeps the bytes as they were when it was made: later writes go to a copy.
pub(crate) type Content = Arc<Mutex<Arc<Vec<u8>>>>;

enum Node {
    File(Content),
    Directory,
}

static TREE: Mutex<BTreeMap<PathBuf, Node>> = Mutex::new(BTreeMap::new());

fn tree() -> MutexGuard<'static, BTreeMap<PathBuf, Node>> {
    TREE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn bytes(content: &Content) -> MutexGuard<'_, Arc<Vec<u8>>> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn is_in(path: &Path) -> bool {
    path.components().next() == Some(Component::Normal(MEMORY.as_ref()))
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

pub(crate) fn kind(path: &Path) -> io::Result<Kind> {
    match tree().get(&plain(path)) {
        Some(Node::File(content)) => Ok(Kind::File(bytes(content).len() as u64)),
        Some(Node::Directory) => Ok(Kind::Directory),
        None if plain(path) == Path::new(MEMORY) => Ok(Kind::Directory),
        None => Err(ErrorKind::NotFound.into()),
    }
}

pub(crate) fn open(path: &Path) -> io::Result<Content> {
    match tree().get(&plain(path)) {
        Some(Node::File(content)) => Ok(content.clone()),
        Some(Node::Directory) => {
            Err(io::Error::new(ErrorKind::InvalidInput, "expected a regular file, got a directory"))
        }
        None => Err(ErrorKind::NotFound.into()),
    }
}

/// The file at a path, made if it is not there.
///
/// Errors: a directory; no directory to make it in.
pub(crate) fn open_or_create(path: &Path) -> io::Result<Content> {
    match open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let path = plain(path);
    match path.parent().map(kind) {
        Some(Ok(Kind::Directory)) => {}
        _ => return Err(ErrorKind::NotFound.into()),
    }
    let content = Content::default();
    tree().insert(path, Node::File(content.clone()));
    Ok(content)
}

pub(crate) fn put(path: &Path, new: Vec<u8>) -> io::Result<()> {
    if !is_in(path) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "expected a path in memory"));
    }
    if let Some(parent) = path.parent() {
        create_dirs(parent)?;
    }
    let content = open_or_create(path)?;
    *bytes(&content) = Arc::new(new);
    Ok(())
}

pub(crate) fn create_dirs(dir: &Path) -> io::Result<()> {
    let mut at = PathBuf::new();
    for part in plain(dir).components() {
        at.push(part);
        match kind(&at) {
            Ok(Kind::Directory) => {}
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(_) => drop(tree().insert(at.clone(), Node::Directory)),
        }
    }
    Ok(())
}

pub(crate) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    if kind(dir)? != Kind::Directory {
        return Err(ErrorKind::NotADirectory.into());
    }
    let dir = plain(dir);
    Ok(tree().keys().filter(|path| path.parent() == Some(&dir)).cloned().collect())
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (plain(from), plain(to));
    match (kind(&from)?, kind(&to)) {
        (_, Err(_)) | (Kind::File(_), Ok(Kind::File(_))) => {}
        _ => return Err(ErrorKind::AlreadyExists.into()),
    }
    let mut tree = tree();
    let moved: Vec<PathBuf> = tree.keys().filter(|path| path.starts_with(&from)).cloned().collect();
    for path in moved {
        if let (Some(node), Ok(rest)) = (tree.remove(&path), path.strip_prefix(&from)) {
            // Joining an empty path would append a separator.
            let new = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
            tree.insert(new, node);
        }
    }
    Ok(())
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let path = plain(path);
    tree().retain(|other, _| !other.starts_with(&path));
    Ok(())
}
