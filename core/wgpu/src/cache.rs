//! Measured choices on disk, a file for each device.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sparta_files::{self as files, File};
use sparta_graph::{Choice, Tuned};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The version of the files.
const VERSION: u32 = 1;
/// The size limit of a file, in bytes.
const LARGEST: u64 = 1 << 20;

/// A directory of measured choices, or none.
#[derive(Clone)]
pub(crate) struct Cache(Option<PathBuf>);

#[derive(Serialize, Deserialize)]
struct Storage {
    sparta_tuning: u32,
    #[serde(flatten)]
    tuned: Tuned,
}

impl Cache {
    /// `sparta/wgpu` in the user's cache directory.
    pub fn of_user() -> Cache {
        Cache(dirs::cache_dir().map(|dir| dir.join("sparta").join("wgpu")))
    }

    pub fn at(directory: Option<PathBuf>) -> Cache {
        Cache(directory)
    }

    /// A hash of what the kernels' speed depends on: their texts, and this version's lowering.
    pub fn kernels() -> String {
        let mut hash = Sha256::new();
        for text in sparta_kernels::texts().chain([env!("CARGO_PKG_VERSION")]) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        short(hash)
    }

    fn path(&self, device: &str) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join(format!("{}.json", short(Sha256::new_with_prefix(device)))))
    }

    /// The choices stored for a device; none without a file.
    ///
    /// Errors: a file that is damaged, or of another version or device.
    pub fn load(&self, device: &str) -> Result<BTreeMap<String, Choice>, String> {
        let Some(path) = self.path(device) else { return Ok(BTreeMap::new()) };
        let wrong = |what: String| format!("{}: {what}", path.display());
        let text = match files::read_text(&path, LARGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            text => text.map_err(|error| wrong(format!("measured choices that cannot be read: {error}")))?,
        };
        let stored: Storage =
            serde_json::from_str(&text).map_err(|error| wrong(format!("not a file of measured choices: {error}")))?;
        if (stored.sparta_tuning, stored.tuned.device.as_str()) != (VERSION, device) {
            let (version, of) = (stored.sparta_tuning, stored.tuned.device);
            return Err(wrong(format!("expected version {VERSION} for {device}, got version {version} for {of}")));
        }
        Ok(stored.tuned.choices)
    }

    /// Stores choices beside those already there, which another process may have added meanwhile and which stay. A file that
    /// cannot be used is replaced.
    ///
    /// Errors: those of the system.
    pub fn add(&self, device: &str, choices: BTreeMap<String, Choice>) -> Result<(), String> {
        let Some(path) = self.path(device) else { return Ok(()) };
        let mut all = choices;
        all.extend(self.load(device).unwrap_or_default());
        let stored = Storage { sparta_tuning: VERSION, tuned: Tuned { device: device.into(), choices: all } };
        let text = serde_json::to_string_pretty(&stored).map_err(|error| error.to_string())?;
        write(&path, &text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Writes to a temporary file and renames it, so that no process reads a partial file.
fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), files::create_dirs)?;
    let temporary = files::temporary(path).ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = File::create(&temporary)?;
    let written = writeln!(file, "{text}").and_then(|()| files::publish(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = files::remove(&temporary);
    }
    written
}

/// The first half of a SHA-256.
fn short(hash: Sha256) -> String {
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn choices(name: &str, number: u32) -> BTreeMap<String, Choice> {
        BTreeMap::from([(name.to_owned(), Choice::from([("blocks".to_owned(), number)]))])
    }

    #[test]
    fn choices_come_back_and_the_first_ones_stay() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(home.path().join("a/b")));
        assert_eq!(cache.load("card").unwrap(), BTreeMap::new());
        cache.add("card", choices("x", 1)).unwrap();
        cache.add("card", [choices("x", 2), choices("y", 3)].into_iter().flatten().collect()).unwrap();
        let expected: BTreeMap<_, _> = [choices("x", 1), choices("y", 3)].into_iter().flatten().collect();
        assert_eq!(cache.load("card").unwrap(), expected);
        assert_eq!(cache.load("another card").unwrap(), BTreeMap::new());
        let files: Vec<_> = fs::read_dir(home.path().join("a/b")).unwrap().collect();
        assert_eq!(files.len(), 1, "no temporary file is left: {files:?}");
        let nowhere = Cache::at(None);
        nowhere.add("card", choices("x", 1)).unwrap();
        assert_eq!(nowhere.load("card").unwrap(), BTreeMap::new());
    }

    #[test]
    fn what_is_damaged_or_of_another_device_is_refused_and_replaced() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(home.path().to_owned()));
        cache.add("card", choices("x", 1)).unwrap();
        let path = cache.path("card").unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for (text, part) in [
            (whole[..whole.len() / 2].to_owned(), "not a file of measured choices"),
            (String::new(), "not a file of measured choices"),
            (whole.replace("\"card\"", "\"another card\""), "for another card"),
            (whole.replace("\"sparta_tuning\": 1", "\"sparta_tuning\": 2"), "got version 2"),
            (whole.replace("\"blocks\": 1", "\"blocks\": -1"), "not a file of measured choices"),
            ("x".repeat(LARGEST as usize + 1), "cannot be read"),
        ] {
            fs::write(&path, text).unwrap();
            let message = cache.load("card").unwrap_err();
            assert!(message.contains(part) && message.starts_with(path.to_str().unwrap()), "{message}");
            cache.add("card", choices("z", 2)).unwrap();
            assert_eq!(cache.load("card").unwrap(), choices("z", 2));
        }
    }
}
