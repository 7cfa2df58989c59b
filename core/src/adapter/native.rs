//! Our own format: `adapter.safetensors` with the trained values in f32, and `adapter.json` with everything needed to
//! apply them to the base model.

use super::{Adapter, Head, Kind};
use crate::hash::{fingerprint, hash_file};
use crate::job::{RunConfig, TrainablePlan};
use crate::method::{Adaptation, index_set};
use crate::train::Snapshot;
use crate::weights::{INDEX, Weights, atomic_write, read_snapshot, save_snapshot};
use crate::{Error, Result, files};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sparta_plugin::method::Options;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

pub const MANIFEST: &str = "adapter.json";
const VALUES: &str = "adapter.safetensors";
pub const FORMAT: &str = "sparta-adapter/1";

/// `adapter.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `sparta-adapter/1`
    pub format: String,
    pub method: String,
    pub method_version: String,
    /// All options of the method.
    pub options: Options,
    /// Determines the index sets that are not stored.
    pub seed: u64,
    /// SHA-256 over all index sets; absent if nothing is sparse.
    pub index_sha256: Option<String>,
    /// [`fingerprint`] of the base model.
    pub base: String,
    pub labels: Vec<String>,
    /// [`Head::objective`]
    #[serde(default = "super::classification")]
    pub objective: String,
    /// Scalars trained outside the head, and their share of the model.
    pub trained_in_body: u64,
    pub density: f64,
    /// SHA-256 of `adapter.safetensors`.
    pub values_sha256: String,
    /// The run that made it.
    pub config: RunConfig,
}

/// Writes the adapter of a run: trained and drawn `values` by name, for a base model with these `weights`, and the
/// index sets if the method may have changed them. The manifest comes last, with the hash of the values, so that an
/// incomplete write is noticed.
pub fn save(
    dir: &Path,
    config: &RunConfig,
    adaptation: &Adaptation,
    weights: &Weights,
    head: &Head,
    values: &BTreeMap<String, Vec<f32>>,
) -> Result<()> {
    let trained = adaptation.stored().into_iter().map(|t| (t.name, t.shape));
    let whole = adaptation.parameters.iter().map(|p| (p.name.clone(), p.shape.clone()));
    let shapes: BTreeMap<String, Vec<usize>> = whole.chain(trained).collect();
    let values_sha256 = save_values(dir, FORMAT, values, &shapes, &adaptation.stored_indices())?;
    let sets = adaptation.index_sets();
    let trainable = TrainablePlan::new(adaptation);
    let manifest = Manifest {
        format: FORMAT.into(),
        method: adaptation.info.name.clone(),
        method_version: adaptation.info.version.clone(),
        options: adaptation.options.clone(),
        seed: config.seed,
        index_sha256: (!sets.is_empty()).then(|| index_set::fingerprint(sets.into_values())),
        base: fingerprint(weights),
        labels: head.labels.clone(),
        objective: head.objective.clone(),
        trained_in_body: trainable.body,
        density: trainable.density,
        values_sha256,
        config: config.clone(),
    };
    save_manifest(dir, &manifest)
}

/// Writes `adapter.safetensors`; tensors missing in `shapes` become flat vectors. Returns the file's SHA-256.
pub fn save_values(
    dir: &Path,
    format: &str,
    values: &BTreeMap<String, Vec<f32>>,
    shapes: &BTreeMap<String, Vec<usize>>,
    indices: &BTreeMap<String, Vec<u32>>,
) -> Result<String> {
    files::create_dirs(dir).map_err(Error::io(dir))?;
    let path = dir.join(VALUES);
    save_snapshot(&path, values, indices, shapes, &BTreeMap::from([("format".to_owned(), format.to_owned())]))?;
    hash_file(&path)
}

pub fn save_manifest(dir: &Path, manifest: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(manifest).map_err(|e| Error::Training(e.to_string()))?;
    let path = dir.join(MANIFEST);
    atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
}

/// The `format` of `adapter.json`.
pub fn read_format(dir: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Format {
        format: String,
    }
    Ok(read_manifest::<Format>(dir)?.format)
}

pub fn read_manifest<T: DeserializeOwned>(dir: &Path) -> Result<T> {
    let path = dir.join(MANIFEST);
    let text = files::read_text(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    serde_json::from_str(&text).map_err(|e| Error::Weights(format!("{}: not an adapter manifest: {e}", path.display())))
}

/// Reads `adapter.safetensors`. Errors: values that were altered since they were saved.
pub fn read_values(dir: &Path, sha256: &str) -> Result<Snapshot> {
    let path = dir.join(VALUES);
    if hash_file(&path)? != sha256 {
        return Err(Error::Weights(format!("{}: damaged: its SHA-256 is not the one in {MANIFEST}", path.display())));
    }
    let read = read_snapshot(&path)?;
    // Even an empty set is stored, so that loading draws nothing.
    let bare =
        read.indices.iter().find(|(name, set)| !set.is_empty() && !read.values.contains_key(&format!("delta.{name}")));
    match bare {
        None => Ok(read),
        Some((name, set)) => Err(Error::Weights(format!(
            "{}: `{INDEX}{name}` chooses {} elements, and there is no `delta.{name}` with their changes",
            path.display(),
            set.len()
        ))),
    }
}

/// Reads the adapter of a run.
pub fn load(dir: &Path) -> Result<Adapter> {
    let manifest: Manifest = read_manifest(dir)?;
    let Snapshot { values, indices } = read_values(dir, &manifest.values_sha256)?;
    let config = &manifest.config;
    Ok(Adapter {
        dir: dir.to_owned(),
        model: config.model.clone(),
        base: Some(manifest.base.clone()),
        heads: vec![Head {
            name: config.task.clone(),
            labels: manifest.labels.clone(),
            objective: manifest.objective.clone(),
            config: Some(config.clone()),
        }],
        values,
        indices,
        kind: Kind::Native(Box::new(manifest)),
    })
}
