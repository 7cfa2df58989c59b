//! Downloads a file into the cache: continues an earlier attempt, checks the hash, then gives the file its name.

use super::cache::{Cache, create_parent};
use super::client::{Client, Failure, Metadata, Outcome, text};
use super::select::is_plain_path;
use super::{Event, Progress, Repo};
use crate::hash::hex;
use crate::{Error, files};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::StatusCode;

/// The most attempts in a row that receive nothing.
const ATTEMPTS: u32 = 5;

/// The longest wait that the hub may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Bytes per read.
const CHUNK: usize = 1 << 20;

impl Client {
    /// Makes sure that a file is in the snapshot of `commit`.
    ///
    /// `size`: its size in bytes, if known; a file of a different size is fetched again.
    pub fn fetch(
        &self,
        cache: &Cache,
        repo: &Repo,
        commit: &str,
        (name, size): (&str, Option<u64>),
        progress: Progress,
    ) -> Outcome<()> {
        if !is_plain_path(name) {
            return Err(Failure::Refused(format!("{}: {name:?} is not a path inside a repository", repo.id)));
        }
        let whole = |path: &Path, size: Option<u64>| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && size.is_none_or(|size| found.len() == size))
        };
        if whole(&cache.snapshot(commit).join(name), size) {
            return Ok(());
        }
        let url = self.file_url(repo, commit, name);
        let metadata = self.patiently(|| self.metadata(repo, &url, name))?;
        let blob = cache.blob(&metadata.etag);
        create_parent(&blob)?;
        let _lock = cache.lock(&metadata.etag)?;
        if !whole(&blob, metadata.size) {
            let path = cache.blob(&format!("{}.incomplete", metadata.etag));
            if blob.is_file() {
                // It may be the start of the right one.
                fs::rename(&blob, &path).map_err(Error::io(&blob))?;
            }
            let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
            let file = file.map_err(Error::io(&path))?;
            let mut part = Part { client: self, repo, url: &url, name, metadata: &metadata, path, file };
            part.download(progress)?;
            files::publish(&part.path, &blob).map_err(Error::io(&blob))?;
        }
        Ok(cache.link(commit, name, &metadata.etag)?)
    }

    /// Retries while there is no answer.
    fn patiently<T>(&self, ask: impl Fn() -> Outcome<T>) -> Outcome<T> {
        for vain in 0..ATTEMPTS - 1 {
            match ask() {
                Err(failure) => self.wait(failure, vain)?,
                found => return found,
            }
        }
        ask()
    }

    /// Retries while the hub asks to come back later.
    pub fn politely<T>(&self, ask: impl Fn() -> Outcome<T>) -> Outcome<T> {
        for vain in 0..ATTEMPTS - 1 {
            match ask() {
                Err(failure @ Failure::Busy(..)) => self.wait(failure, vain)?,
                outcome => return outcome,
            }
        }
        ask()
    }

    /// Waits after the n-th failed attempt: as long as the hub asks, or twice as long each time.
    ///
    /// Errors: a permanent refusal, or a wait of more than a minute.
    fn wait(&self, failure: Failure, vain: u32) -> Outcome<()> {
        let own = self.retry_wait * (1 << vain);
        let wait = match failure {
            Failure::Busy(_, Some(wait)) if wait <= LONGEST_WAIT => wait.max(own),
            Failure::Unreachable(_) | Failure::Busy(_, None) => own,
            failure => return Err(failure),
        };
        std::thread::sleep(wait);
        Ok(())
    }
}

/// A file that may be partly downloaded.
struct Part<'a> {
    client: &'a Client,
    repo: &'a Repo,
    url: &'a str,
    name: &'a str,
    metadata: &'a Metadata,
    path: PathBuf,
    file: File,
}

impl Part<'_> {
    /// Completes and checks the file.
    fn download(&mut self, progress: Progress) -> Outcome<()> {
        let resumed = self.len()? > 0;
        self.receive(progress)?;
        if self.is_intact()? {
            return Ok(());
        }
        // An earlier attempt may have left other data: start once more from the beginning.
        if resumed {
            self.clear()?;
            self.receive(progress)?;
            if self.is_intact()? {
                return Ok(());
            }
        }
        // None of it is worth keeping; the wrong hash is the error to report.
        let _ = fs::remove_file(&self.path);
        Err(Failure::Refused(format!(
            "{}: what was downloaded does not have the hash {} that the hub states; try again, and if it happens again, \
             check HF_ENDPOINT and proxies in between",
            self.url, self.metadata.etag
        )))
    }

    /// Requests until all bytes have arrived, as long as there is progress.
    fn receive(&mut self, progress: Progress) -> Outcome<()> {
        let mut vain = 0;
        loop {
            let before = self.len()?;
            let outcome = match self.metadata.size {
                Some(size) if before == size => return Ok(()),
                Some(size) if before > size => self.clear(),
                _ => self.receive_some(progress),
            };
            let after = self.len()?;
            let failure = match outcome {
                Ok(()) if self.metadata.size.is_none_or(|size| after == size) => return Ok(()),
                Ok(()) => Failure::Unreachable(format!("{}: the connection ended after {after} bytes", self.url)),
                Err(failure) => failure,
            };
            if after > before {
                vain = 0;
                continue;
            }
            vain += 1;
            if vain == ATTEMPTS {
                return Err(failure);
            }
            self.client.wait(failure, vain - 1)?;
        }
    }

    /// Makes one request for the missing bytes, and keeps what arrives. A server may restart from the beginning.
    fn receive_some(&mut self, progress: Progress) -> Outcome<()> {
        let mut done = self.len()?;
        let response = self.client.get(self.url, (done > 0).then_some(done))?;
        let range = text(response.headers(), "content-range").unwrap_or_default();
        match response.status() {
            StatusCode::PARTIAL_CONTENT if range.starts_with(&format!("bytes {done}-")) => {}
            StatusCode::OK => {
                self.clear()?;
                done = 0;
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => return self.clear(),
            _ => return Err(self.client.refusal(self.repo, Some(self.name), response)),
        }
        self.file.seek(SeekFrom::Start(done)).map_err(Error::io(&self.path))?;
        // A file of unknown size must be small.
        let most = self.metadata.size.unwrap_or(files::TOKENIZER);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            progress(Event::File { name: self.name, done, total: self.metadata.size.unwrap_or(done) });
            let n = body.read(&mut buffer).map_err(|e| Failure::Unreachable(format!("{}: {e}", self.url)))?;
            // Anything beyond the stated size is cut off.
            let wanted = usize::try_from(most - done).map_or(n, |left| left.min(n));
            if wanted == 0 {
                return Ok(());
            }
            self.file.write_all(&buffer[..wanted]).map_err(Error::io(&self.path))?;
            done += wanted as u64;
        }
    }

    fn len(&self) -> Outcome<u64> {
        Ok(self.file.metadata().map_err(Error::io(&self.path))?.len())
    }

    fn clear(&mut self) -> Outcome<()> {
        Ok(self.file.set_len(0).map_err(Error::io(&self.path))?)
    }

    /// Whether the file's hash matches its name: SHA-256 of the content, or git's SHA-1. Other names, which some
    /// mirrors use, cannot be checked.
    fn is_intact(&mut self) -> Outcome<bool> {
        let etag = &self.metadata.etag;
        let found = match etag.len() {
            64 => hash(&mut self.file, &self.path, Sha256::new())?,
            40 => {
                let prefix = format!("blob {}\0", self.len()?);
                hash(&mut self.file, &self.path, Sha1::new_with_prefix(prefix))?
            }
            _ => return Ok(true),
        };
        Ok(found.eq_ignore_ascii_case(etag))
    }
}

fn hash(file: &mut File, path: &Path, mut hash: impl Digest) -> Outcome<String> {
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}
