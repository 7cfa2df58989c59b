//! Adapters on disk: `adapter.safetensors` with the trained values in f32, `adapter.json` with all that is needed to
//! apply them to the base model again.

mod fingerprint;

pub use fingerprint::fingerprint;

use crate::method::index_set;
use crate::run::Prepared;
use crate::train::RunConfig;
use crate::weights::{Dtype, OutTensor, TensorFile, atomic_write, save as save_tensors};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sparta_plugin::method::Options;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "adapter.json";
const VALUES: &str = "adapter.safetensors";
const FORMAT: &str = "sparta-adapter/1";

/// `adapter.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `sparta-adapter/1`
    pub format: String,
    pub method: String,
    pub method_version: String,
    /// Every option of the method.
    pub options: Options,
    /// Decides the index sets of sparse parts.
    pub seed: u64,
    /// SHA-256 over all index sets; absent where nothing is sparse.
    pub index_sha256: Option<String>,
    /// [`fingerprint`] of the base model.
    pub base: String,
    pub labels: Vec<String>,
    /// Scalars trained outside the head, and the share of the model that they are.
    pub trained_in_body: u64,
    pub density: f64,
    /// SHA-256 of `adapter.safetensors`.
    pub values_sha256: String,
    /// The run that made it.
    pub config: RunConfig,
}

/// An adapter that was read.
pub struct Adapter {
    pub dir: PathBuf,
    pub manifest: Manifest,
    /// Trained values by tensor name.
    pub values: BTreeMap<String, Vec<f32>>,
}

/// Writes an adapter. The manifest comes last and holds the hash of the values, so that a torn write is noticed.
pub fn save(dir: &Path, run: &Prepared, values: &BTreeMap<String, Vec<f32>>) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let adaptation = &run.setup.adaptation;
    let trained = adaptation.trained();
    let tensors: Vec<OutTensor> = trained
        .iter()
        .filter_map(|t| {
            let bytes = Cow::Borrowed(bytemuck::cast_slice(values.get(&t.name)?));
            Some(OutTensor { name: t.name.clone(), dtype: Dtype::F32, shape: t.shape.clone(), bytes })
        })
        .collect();
    let path = dir.join(VALUES);
    let metadata = BTreeMap::from([("format".to_owned(), FORMAT.to_owned())]);
    save_tensors(&path, &tensors, &metadata)?;
    let sets: Vec<_> = adaptation.index_sets().into_values().cloned().collect();
    let manifest = Manifest {
        format: FORMAT.into(),
        method: adaptation.info.name.clone(),
        method_version: adaptation.info.version.clone(),
        options: adaptation.options.clone(),
        seed: run.config.seed,
        index_sha256: (!sets.is_empty()).then(|| index_set::fingerprint(&sets)),
        base: fingerprint(&run.weights),
        labels: run.task.labels.clone(),
        trained_in_body: run.plan.trainable.body,
        density: run.plan.trainable.density,
        values_sha256: hash_file(&path)?,
        config: run.config.clone(),
    };
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::Training(e.to_string()))?;
    let path = dir.join(MANIFEST);
    atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
}

/// Reads the adapter in `path`, an adapter directory or a run directory.
///
/// Errors: no adapter there; an unknown format; values that are not those that were saved.
pub fn load(path: &Path) -> Result<Adapter> {
    let inside = path.join("adapter");
    let dir = if inside.join(MANIFEST).is_file() { inside } else { path.to_owned() };
    let manifest_path = dir.join(MANIFEST);
    if !manifest_path.is_file() {
        return Err(Error::Weights(format!(
            "{}: no adapter here: neither {MANIFEST} nor adapter/{MANIFEST} exists; give a run directory",
            path.display()
        )));
    }
    let text = fs::read_to_string(&manifest_path).map_err(Error::io(&manifest_path))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|e| Error::Weights(format!("{}: not an adapter manifest: {e}", manifest_path.display())))?;
    if manifest.format != FORMAT {
        return Err(Error::Weights(format!(
            "{}: format `{}`, this version reads `{FORMAT}`",
            manifest_path.display(),
            manifest.format
        )));
    }
    let values_path = dir.join(VALUES);
    if hash_file(&values_path)? != manifest.values_sha256 {
        return Err(Error::Weights(format!(
            "{}: damaged: its SHA-256 is not the one in {MANIFEST}",
            values_path.display()
        )));
    }
    let file = TensorFile::open(&values_path)?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let values = names.into_iter().map(|name| Ok((name.clone(), file.floats(&name)?.1))).collect::<Result<_>>()?;
    Ok(Adapter { dir, manifest, values })
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(Error::io(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(fingerprint::hex(&hash.finalize()))
}
