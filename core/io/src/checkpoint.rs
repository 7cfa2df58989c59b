//! Checkpoints: everything the next step depends on, written so that a crash at any moment leaves either the old or the
//! new one intact.
//!
//! A checkpoint is a directory `step-N` with `state.safetensors` (trained values and the optimizer's state),
//! `best.safetensors` (the best state on dev, with early stopping), `indices.safetensors` and `method.json` (the index
//! sets and the state of a method that acts between steps), `checkpoint.json`, which holds the rest and the hashes of
//! these, and `checkpoint.sha256`, that file's hash in the form of `sha256sum`.

use crate::hash::{hash_file, hex};
use crate::weights::{Dtype, TensorFile, TensorSpec, atomic_write, read_snapshot, save_snapshot, save_with};
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use sparta_train::{Metrics, Snapshot, StateTensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "checkpoint.json";
const SEAL: &str = "checkpoint.sha256";
const STATE: &str = "state.safetensors";
const BEST: &str = "best.safetensors";
const INDICES: &str = "indices.safetensors";
const METHOD: &str = "method.json";
const FORMAT: &str = "sparta-checkpoint/2";

/// The position of a run between two steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Optimizer steps done, skipped ones included.
    pub step: usize,
    /// Steps skipped because a gradient was not finite.
    pub skipped: usize,
    /// Tokens trained on, padding excluded.
    pub tokens: u64,
    /// The last evaluation on dev, and its step.
    pub last_dev: Option<(usize, Metrics)>,
    /// Metric and step of the best evaluation on dev.
    pub best: Option<(f64, usize)>,
    /// Evaluations since the best one.
    pub stale: usize,
    /// Running mean of the loss, to detect spikes.
    pub mean_loss: Option<f64>,
    /// Bytes of `metrics.jsonl` that belong to this position.
    pub metrics_bytes: u64,
}

/// A run's position with its values, except the optimizer's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    pub position: Position,
    /// Optimizer steps that have updated something.
    pub updates: u64,
    /// The best state on dev; empty if it is not kept.
    pub best: Snapshot,
    /// The index sets, if the method may have changed them.
    pub indices: BTreeMap<String, Vec<u32>>,
    /// The method's state between steps.
    pub method_state: Json,
}

/// An intact checkpoint; the tensors of its state are still in the file.
#[derive(Debug)]
pub struct Loaded {
    pub checkpoint: Checkpoint,
    pub state: TensorFile,
}

impl Loaded {
    /// Checks that the saved state has these tensors.
    ///
    /// Errors: a different number of tensors.
    pub fn check(&self, expected: &[StateTensor]) -> Result<()> {
        let (path, expected, got) = (self.state.path().display(), expected.len(), self.state.names().count());
        if expected != got {
            return Err(Error::Weights(format!("{path}: expected {expected} tensors, got {got}")));
        }
        Ok(())
    }

    /// The saved values of a tensor. Errors: it is missing.
    pub fn values(&self, tensor: &StateTensor) -> Result<Vec<f32>> {
        Ok(self.state.floats(&tensor.name)?.1)
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    position: Position,
    updates: u64,
    /// The identity of the run, by name; a resumed run must have the same.
    identity: BTreeMap<String, String>,
    /// SHA-256 by file name.
    files: BTreeMap<String, String>,
}

/// The checkpoints of a run directory.
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    identity: BTreeMap<String, String>,
}

impl Checkpoints {
    /// `identity` describes model, data, method and configuration; the `keep` newest checkpoints are kept.
    pub fn new(run: &Path, keep: usize, identity: BTreeMap<String, String>) -> Self {
        Checkpoints { dir: run.join("checkpoints"), keep: keep.max(1), identity }
    }

    /// Writes a checkpoint and removes those no longer kept; `read` is called for the values of each tensor in turn.
    ///
    /// Errors: the disk is full or read-only, in which case older checkpoints are untouched.
    pub fn save(
        &self,
        checkpoint: &Checkpoint,
        state: &[StateTensor],
        read: impl FnMut(&StateTensor) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let name = format!("step-{:08}", checkpoint.position.step);
        let temporary = self.dir.join(format!(".{name}.tmp"));
        let saved = self.write(&temporary, checkpoint, state, read).and_then(|()| {
            // A checkpoint of the same step is first moved to a name that still counts as one, so that there always is
            // one.
            let (target, aside) = (self.dir.join(&name), self.dir.join(format!("{name}.old")));
            if files::exists(&target) {
                remove(&aside)?;
                files::rename(&target, &aside).map_err(Error::io(&target))?;
            }
            files::publish(&temporary, &target).map_err(Error::io(&target))?;
            remove(&aside)
        });
        if let Err(error) = saved {
            // The first error is the one to report.
            let _ = files::remove(&temporary);
            return Err(Error::Training(format!(
                "the checkpoint could not be written: {error}; older ones are untouched: continue from them with --resume"
            )));
        }
        self.prune()
    }

    fn write(
        &self,
        dir: &Path,
        checkpoint: &Checkpoint,
        state: &[StateTensor],
        read: impl FnMut(&StateTensor) -> Result<Vec<f32>>,
    ) -> Result<()> {
        remove(dir)?;
        files::create_dirs(dir).map_err(Error::io(dir))?;
        let mut files = BTreeMap::new();
        files.insert(STATE.to_owned(), write_state(&dir.join(STATE), state, read)?);
        if !checkpoint.best.values.is_empty() {
            let Snapshot { values, indices } = &checkpoint.best;
            files.insert(BEST.to_owned(), write_snapshot(&dir.join(BEST), values, indices)?);
        }
        if !checkpoint.indices.is_empty() {
            let none = BTreeMap::new();
            files.insert(INDICES.to_owned(), write_snapshot(&dir.join(INDICES), &none, &checkpoint.indices)?);
        }
        if !checkpoint.method_state.is_null() {
            let path = dir.join(METHOD);
            let text = serde_json::to_vec(&checkpoint.method_state).map_err(|e| Error::Training(e.to_string()))?;
            atomic_write(&path, |file| file.write_all(&text).map_err(Error::io(&path)))?;
            files.insert(METHOD.to_owned(), hash_file(&path)?);
        }
        let manifest = Manifest {
            format: FORMAT.into(),
            position: checkpoint.position.clone(),
            updates: checkpoint.updates,
            identity: self.identity.clone(),
            files,
        };
        let mut text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::Training(e.to_string()))?;
        text.push('\n');
        for (name, content) in [(MANIFEST, &text), (SEAL, &seal(text.as_bytes()))] {
            let path = dir.join(name);
            atomic_write(&path, |file| file.write_all(content.as_bytes()).map_err(Error::io(&path)))?;
        }
        Ok(())
    }

    fn prune(&self) -> Result<()> {
        let all = self.list()?;
        for old in &all[..all.len().saturating_sub(self.keep)] {
            remove(old)?;
        }
        Ok(())
    }

    /// The step of the newest checkpoint, intact or damaged; 0 if there is none.
    pub fn newest_step(&self) -> Result<usize> {
        let step = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.split('.').next()?.parse().ok();
        Ok(self.list()?.iter().filter_map(step).max().unwrap_or(0))
    }

    /// Directories of finished checkpoints, oldest first.
    fn list(&self) -> Result<Vec<PathBuf>> {
        if !files::exists(&self.dir) {
            return Ok(Vec::new());
        }
        let mut found = files::list(&self.dir).map_err(Error::io(&self.dir))?;
        found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")));
        Ok(found)
    }

    /// The newest checkpoint that is intact and `fits`, and messages on those that were skipped. `None` if none has
    /// been written yet.
    ///
    /// Errors: all are damaged; the newest belongs to a different run, with the differences.
    pub fn load_newest(&self, fits: impl Fn(&Position) -> Result<()>) -> Result<Option<(Loaded, Vec<String>)>> {
        let mut damaged = Vec::new();
        for path in self.list()?.iter().rev() {
            match read(path) {
                Ok((loaded, identity)) => {
                    self.check_identity(path, &identity)?;
                    match fits(&loaded.checkpoint.position) {
                        Ok(()) => return Ok(Some((loaded, damaged))),
                        Err(error) => damaged.push(format!("{}: skipped: {error}", path.display())),
                    }
                }
                Err(error) => damaged.push(format!("{}: skipped: {error}", path.display())),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let listed = damaged.join("; ");
        Err(Error::Training(format!(
            "{}: no checkpoint is intact ({listed}); start again with another --out",
            self.dir.display()
        )))
    }

    fn check_identity(&self, path: &Path, stored: &BTreeMap<String, String>) -> Result<()> {
        let absent = String::from("nothing");
        let names = self.identity.keys().chain(stored.keys());
        let changed: std::collections::BTreeSet<&String> =
            names.filter(|name| self.identity.get(*name) != stored.get(*name)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let differences: Vec<String> = changed
            .into_iter()
            .map(|name| {
                let was = stored.get(name).unwrap_or(&absent);
                let is = self.identity.get(name).unwrap_or(&absent);
                format!("{name} was {was}, is {is}")
            })
            .collect();
        Err(Error::Usage(format!(
            "{}: cannot be resumed, as it would be a different run: {}",
            path.display(),
            differences.join("; ")
        )))
    }
}

/// The contents of [`SEAL`] for a manifest.
pub fn seal(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", hex(&Sha256::digest(manifest)))
}

fn remove(path: &Path) -> Result<()> {
    files::remove(path).map_err(Error::io(path))
}

fn flat(name: &str, len: usize) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![len] }
}

/// Writes a file, and returns its hash.
fn write_state(
    path: &Path,
    state: &[StateTensor],
    mut read: impl FnMut(&StateTensor) -> Result<Vec<f32>>,
) -> Result<String> {
    let by_name: BTreeMap<&str, &StateTensor> = state.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let specs = state.iter().map(|tensor| flat(&tensor.name, tensor.len)).collect();
    save_with(path, specs, &BTreeMap::new(), |spec| {
        let values = read(by_name[spec.name.as_str()])?;
        Ok(Cow::Owned(bytemuck::cast_slice(&values).to_vec()))
    })?;
    hash_file(path)
}

fn write_snapshot(
    path: &Path,
    values: &BTreeMap<String, Vec<f32>>,
    indices: &BTreeMap<String, Vec<u32>>,
) -> Result<String> {
    save_snapshot(path, values, indices, &BTreeMap::new(), &BTreeMap::new())?;
    hash_file(path)
}

fn read(dir: &Path) -> Result<(Loaded, BTreeMap<String, String>)> {
    let path = dir.join(MANIFEST);
    let bytes = files::read(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    let seal_path = dir.join(SEAL);
    let stored = files::read(&seal_path, files::CONFIGURATION).map_err(Error::io(&seal_path))?;
    if stored != seal(&bytes).as_bytes() {
        return Err(Error::Training(format!("{MANIFEST} is damaged: its SHA-256 is not the one in {SEAL}")));
    }
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|e| Error::Training(format!("{}: {e}", path.display())))?;
    if manifest.format != FORMAT {
        return Err(Error::Training(format!("format `{}`, this version reads `{FORMAT}`", manifest.format)));
    }
    if !manifest.files.contains_key(STATE) {
        return Err(Error::Training(format!("{MANIFEST} does not name {STATE}")));
    }
    for (name, expected) in &manifest.files {
        if ![STATE, BEST, INDICES, METHOD].contains(&name.as_str()) {
            return Err(Error::Training(format!("{MANIFEST} names the unknown file `{name}`")));
        }
        if hash_file(&dir.join(name))? != *expected {
            return Err(Error::Training(format!("{name} is damaged: its SHA-256 is not the one in {MANIFEST}")));
        }
    }
    let has = |name: &str| manifest.files.contains_key(name).then(|| dir.join(name));
    let best = has(BEST).map_or(Ok(Snapshot::default()), |path| read_snapshot(&path))?;
    let sets = has(INDICES).map_or(Ok(Snapshot::default()), |path| read_snapshot(&path))?;
    let method_state = has(METHOD).map_or(Ok(Json::Null), |path| {
        let bytes = files::read(&path, files::LOG).map_err(Error::io(&path))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Training(format!("{}: {e}", path.display())))
    })?;
    let (position, updates) = (manifest.position, manifest.updates);
    let checkpoint = Checkpoint { position, updates, best, indices: sets.indices, method_state };
    Ok((Loaded { checkpoint, state: TensorFile::open(dir.join(STATE))? }, manifest.identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn identity(method: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("method".to_owned(), method.to_owned())])
    }

    fn at(step: usize) -> Checkpoint {
        let values = BTreeMap::from([("w".to_owned(), vec![step as f32, 2.0])]);
        Checkpoint {
            position: Position { step, ..Position::default() },
            updates: step as u64,
            best: Snapshot { values, indices: BTreeMap::from([("w".to_owned(), vec![1, 4])]) },
            indices: BTreeMap::from([("w".to_owned(), vec![0, step as u32])]),
            method_state: serde_json::json!({"seen": [step, 0.1f32]}),
        }
    }

    fn save(checkpoints: &Checkpoints, step: usize) {
        let state = ["value.w", "m.w", "v.w"].map(|name| StateTensor::new(name.into(), 2, name.into(), name.into()));
        checkpoints.save(&at(step), &state, |tensor| Ok(vec![tensor.name.len() as f32, step as f32])).unwrap();
    }

    /// The newest checkpoint, after checking its state, and the damaged ones.
    fn newest(checkpoints: &Checkpoints) -> Option<(Checkpoint, Vec<String>)> {
        let (Loaded { checkpoint, state }, damaged) = checkpoints.load_newest(|_| Ok(())).unwrap()?;
        assert_eq!(state.names().collect::<Vec<_>>(), ["m.w", "v.w", "value.w"]);
        assert_eq!(state.floats("value.w").unwrap().1, [7.0, checkpoint.position.step as f32]);
        Some((checkpoint, damaged))
    }

    #[test]
    fn the_newest_whole_one_is_used_and_a_damaged_one_reported() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2, identity("sparta"));
        for step in [10, 20, 30] {
            save(&checkpoints, step);
        }
        assert_eq!(newest(&checkpoints), Some((at(30), vec![])));
        assert!(!dir.path().join("checkpoints/step-00000010").exists(), "only two are kept");

        let file = dir.path().join("checkpoints/step-00000030").join(STATE);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let (checkpoint, damaged) = newest(&checkpoints).unwrap();
        assert_eq!(checkpoint, at(20));
        assert!(damaged[0].contains("step-00000030") && damaged[0].contains("damaged"), "{damaged:?}");
    }

    #[test]
    fn a_different_run_is_refused_and_the_difference_named() {
        let dir = tempfile::tempdir().unwrap();
        save(&Checkpoints::new(dir.path(), 2, identity("sparta")), 1);
        let error = Checkpoints::new(dir.path(), 2, identity("lora")).load_newest(|_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("method was sparta, is lora"), "{error}");
    }

    #[test]
    fn none_yet_is_not_an_error_but_only_damaged_ones_are() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2, identity("sparta"));
        assert_eq!(newest(&checkpoints), None);
        save(&checkpoints, 1);
        fs::remove_file(dir.path().join("checkpoints/step-00000001").join(STATE)).unwrap();
        let error = checkpoints.load_newest(|_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("no checkpoint is intact") && error.contains("step-00000001"), "{error}");
    }

    #[test]
    fn a_crash_while_a_step_is_saved_again_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 1, identity("sparta"));
        save(&checkpoints, 1);
        let [new, old] = ["", ".old"].map(|end| dir.path().join(format!("checkpoints/step-00000001{end}")));
        fs::rename(&new, &old).unwrap();
        assert_eq!(newest(&checkpoints), Some((at(1), vec![])));
        save(&checkpoints, 1);
        assert!(new.exists() && !old.exists());
    }
}
