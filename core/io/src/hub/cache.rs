//! The hub's cache directory: `models--ORG--NAME/{blobs,refs,snapshots}`. Files are blobs named by their hash; a
//! snapshot is a tree of links to them; a ref holds the commit to which a branch or tag last resolved.

use super::client::Failure;
use super::{Repo, is_commit};
use crate::weights::atomic_write;
use crate::{Error, Result, files};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) struct Cache {
    repo: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub fn new(root: &Path, repo: &Repo) -> Cache {
        let folder = format!("{}--{}", repo.kind.plural(), repo.id.replace('/', "--"));
        Cache { locks: root.join(".locks").join(&folder), repo: root.join(folder) }
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repo.join("blobs").join(etag)
    }

    /// The commit to which a revision last resolved.
    pub fn known_commit(&self, repo: &Repo) -> Option<String> {
        if is_commit(&repo.revision) {
            return Some(repo.revision.clone());
        }
        let text = files::read_text(&self.repo.join("refs").join(&repo.revision), files::CONFIGURATION).ok()?;
        Some(text.trim().to_owned()).filter(|text| is_commit(text))
    }

    pub fn write_ref(&self, repo: &Repo, commit: &str) -> Result<()> {
        if repo.is_pinned() {
            return Ok(());
        }
        let path = self.repo.join("refs").join(&repo.revision);
        create_parent(&path)?;
        let _lock = self.lock("refs")?;
        atomic_write(&path, |file| file.write_all(commit.as_bytes()).map_err(Error::io(&path)))
    }

    /// Waits until nobody else writes the blob of this name; dropping the returned file releases the lock.
    pub fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(path))?;
        Ok(file)
    }

    /// Makes `name` in a snapshot a link to a blob.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(name);
        create_parent(&pointer)?;
        let up = "../".repeat(2 + name.split('/').count() - 1);
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &self.blob(etag), &pointer) {
            // A dangling link remains if someone removed the blob.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.and_then(|()| files::sync_parent(&pointer)).map_err(Error::io(pointer)),
        }
    }
}

#[cfg(unix)]
fn symlink(relative: &Path, _blob: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

/// On Windows, symbolic links need rights that few users have, so a hard link is used instead.
#[cfg(not(unix))]
fn symlink(_relative: &Path, blob: &Path, pointer: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, pointer).or_else(|_| std::fs::copy(blob, pointer).map(drop))
}

pub(super) fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    files::create_dirs(parent).map_err(Error::io(parent))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Refused(error.to_string())
    }
}
