//! Models and data sets by name: files of the hub, in the cache directory that its other tools share.
//!
//! The hub's own client crate neither continues an interrupted download nor checks hashes, and needs an asynchronous
//! runtime, so this implements its documented protocol on a plain HTTP client: one listing per revision, and per file a
//! HEAD for hash and size, and a GET with a range.

mod cache;
mod client;
mod download;
mod select;
mod settings;
#[cfg(test)]
mod tests;

pub use settings::Settings;

use crate::{Error, Result};
use cache::Cache;
use client::{Client, Failure};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// The plural in paths of the API and of the cache.
    fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "data set",
        }
    }
}

/// A repository of the hub at a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    pub kind: Kind,
    /// `organisation/name`
    pub id: String,
    pub revision: String,
}

/// The default branch.
const MAIN: &str = "main";

impl Repo {
    /// Parses `ORG/NAME` or `ORG/NAME@REVISION`; `None` for an existing directory, or anything else.
    ///
    /// Errors: two revisions, or one that cannot be a branch, tag or commit.
    pub fn parse(kind: Kind, value: &Path, revision: Option<&str>) -> Result<Option<Repo>> {
        let Some(text) = value.to_str().filter(|_| !value.exists()) else { return Ok(None) };
        let (id, inline) = text.split_once('@').map_or((text, None), |(id, revision)| (id, Some(revision)));
        if !is_id(id) {
            return Ok(None);
        }
        let revision = match (inline, revision) {
            (Some(inline), Some(given)) if inline != given => {
                return Err(Error::Usage(format!(
                    "{text} names revision {inline}, --revision names {given}; give one"
                )));
            }
            (inline, given) => inline.or(given).unwrap_or(MAIN),
        };
        if !is_revision(revision) {
            return Err(Error::Usage(format!("{id}: {revision:?} cannot be a branch, tag or commit")));
        }
        Ok(Some(Repo { kind, id: id.to_owned(), revision: revision.to_owned() }))
    }

    /// Whether the revision is a commit, whose files never change.
    fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

fn is_revision(text: &str) -> bool {
    !text.is_empty()
        && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Which files of a repository are wanted.
#[derive(Clone, Debug)]
pub enum Files {
    /// Configuration, tokenizer and safetensors.
    Model,
    /// The parquet files of one task.
    Task(String),
}

/// Progress events of a download.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Bytes of a file received, and in total.
    File {
        name: &'a str,
        done: u64,
        total: u64,
    },
    Message(&'a str),
}

pub type Progress<'a> = &'a mut dyn FnMut(Event);

pub struct Hub {
    settings: Settings,
    client: Client,
}

impl Hub {
    pub fn new(settings: Settings) -> Hub {
        let client = Client::new(&settings);
        Hub { settings, client }
    }

    /// The directory of a repository's snapshot with the wanted files, downloaded if necessary.
    ///
    /// A complete cached commit is used without asking the hub; so is any revision in offline mode, or, with a message,
    /// when the hub cannot be reached. Safe to run alongside other processes on the same cache, including the hub's
    /// tools.
    ///
    /// Errors: no such repository, revision or files; no access; no connection; a file whose hash is wrong twice.
    pub fn get(&self, repo: &Repo, files: &Files, progress: Progress) -> Result<PathBuf> {
        let cache = Cache::new(&self.settings.cache, repo);
        let local = cache.known_commit(repo).map(|commit| cache.snapshot(&commit));
        let complete = local.filter(|dir| select::is_complete(files, dir));
        if let Some(dir) = complete.as_ref().filter(|_| self.settings.offline || repo.is_pinned()) {
            return Ok(dir.clone());
        }
        if self.settings.offline {
            return Err(Error::Hub(format!(
                "{} at revision {} is incomplete in {}, and HF_HUB_OFFLINE forbids downloads; unset it once, or copy \
                 the files there",
                repo.id,
                repo.revision,
                self.settings.cache.display()
            )));
        }
        match (self.download(&cache, repo, files, progress), complete) {
            (Ok(dir), _) => Ok(dir),
            (Err(Failure::Unreachable(reason) | Failure::Busy(reason, _)), Some(dir)) => {
                progress(Event::Message(&format!("{}: using the cached copy: {reason}", repo.id)));
                Ok(dir)
            }
            (Err(failure), _) => Err(Error::Hub(failure.to_string())),
        }
    }

    fn download(
        &self,
        cache: &Cache,
        repo: &Repo,
        files: &Files,
        progress: Progress,
    ) -> std::result::Result<PathBuf, Failure> {
        let listing = self.client.politely(|| self.client.listing(repo))?;
        let snapshot = cache.snapshot(&listing.commit);
        let mut chosen = select::choose(files, &listing.files)
            .map_err(|what| Failure::Refused(format!("{} at revision {}: {what}", repo.id, repo.revision)))?;
        let mut fetched = 0;
        while fetched < chosen.len() {
            let name = &chosen[fetched];
            let size = listing.sizes.get(name).copied();
            self.client.fetch(cache, repo, &listing.commit, (name, size), progress)?;
            fetched += 1;
            if fetched == chosen.len() {
                // The index is among the first files; it names the shards.
                chosen.extend(select::missing_shards(files, &snapshot, &chosen)?);
            }
        }
        cache.write_ref(repo, &listing.commit)?;
        Ok(snapshot)
    }
}
