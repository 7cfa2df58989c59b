//! The model and the data set that `run` uses by default: made by `examples/default_data`, embedded in the binary, and
//! unpacked into the user's cache.

use crate::parse::{Values, table_values};
use sha2::{Digest, Sha256};
use sparta_core::{Error, Result, files};
use std::fs::File;
use std::path::{Path, PathBuf};

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../assets/", $path)) as &[u8])),*]
    };
}

const FILES: &[(&str, &[u8])] = embedded![
    "data/dev.jsonl",
    "data/test.jsonl",
    "data/train.jsonl",
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
];

/// Options that suit the small model: for all methods, and for each one.
const RECIPE: &str = include_str!("../assets/default.toml");

pub struct DefaultJob;

impl DefaultJob {
    /// The options that select the embedded model and data, which are unpacked if necessary.
    pub fn values(method: &str) -> Result<Values> {
        let dir = unpack(&cache_dir()?)?;
        let mut recipe: toml::Table =
            RECIPE.parse().map_err(|e| Error::Config(format!("the embedded default.toml is not TOML: {e}")))?;
        let own = recipe.remove("method").and_then(|methods| methods.get(method)?.as_table().cloned());
        recipe.extend(own.unwrap_or_default());
        let mut values = table_values(&recipe);
        for part in ["model", "data"] {
            values.insert(part.to_owned(), dir.join(part).display().to_string());
        }
        Ok(values)
    }
}

fn cache_dir() -> Result<PathBuf> {
    let cache = dirs::cache_dir().map(|dir| dir.join("sparta"));
    cache.ok_or_else(|| {
        Error::Usage("there is no cache directory for the embedded model; set HOME, or give --model and --data".into())
    })
}

/// Writes the files atomically into a directory below `cache` that is named after their content.
fn unpack(cache: &Path) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for (name, bytes) in FILES {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let dir = cache.join(format!("default-{hash}"));
    if is_complete(&dir) {
        return Ok(dir);
    }
    // Other processes wait while one unpacks; if it is killed, the next one starts over.
    files::create_dirs(cache).map_err(Error::io(cache))?;
    let lock = cache.with_extension("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&lock).map_err(Error::io(&lock))?;
    file.lock().map_err(Error::io(&lock))?;
    if is_complete(&dir) {
        return Ok(dir);
    }
    let part = cache.join(format!("default-{hash}.part"));
    for (name, bytes) in FILES {
        let path = part.join(name);
        let parent = path.parent().unwrap_or(&part);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        std::fs::write(&path, bytes).map_err(Error::io(&path))?;
    }
    // A damaged copy is replaced.
    if dir.exists() {
        files::remove(&dir).map_err(Error::io(&dir))?;
    }
    files::publish(&part, &dir).map_err(Error::io(&dir))?;
    Ok(dir)
}

fn is_complete(dir: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| std::fs::read(dir.join(name)).is_ok_and(|found| found == *bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_writes_all_files_once_and_mends_damage() {
        let home = tempfile::tempdir().unwrap();
        let cache = &home.path().join("sparta");
        let dir = unpack(cache).unwrap();
        assert!(is_complete(&dir));
        let damaged = dir.join("data/dev.jsonl");
        std::fs::write(&damaged, "").unwrap();
        assert!(!is_complete(&dir));
        assert_eq!(unpack(cache).unwrap(), dir);
        assert!(is_complete(&dir));
        assert_eq!(std::fs::read_dir(cache).unwrap().count(), 1);
    }

    #[test]
    fn concurrent_unpacking_is_safe() {
        let home = tempfile::tempdir().unwrap();
        let cache = &home.path().join("sparta");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(is_complete(&unpack(cache).unwrap())));
            }
        });
    }

    #[test]
    fn the_embedded_files_stay_small() {
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total < 3_000_000, "{total} bytes");
    }
}
