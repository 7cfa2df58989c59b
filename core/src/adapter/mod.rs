//! Adapters: what a run learned, on disk and applied to its base model. Besides our own format: PEFT's LoRA and sparse
//! methods, sparse deltas, patches of checkpoints, combined adapters, and merged full models. Each adapter has heads:
//! rows of [`HEAD`] for classes, or the model's own vocabulary head for next tokens.

mod applied;
pub mod combine;
mod export;
mod gguf_lora;
mod gguf_model;
mod head;
mod info;
mod merge;
mod model_dir;
mod native;
mod patch;
mod peft;
mod sparse_deltas;
mod stored;
mod vector;
mod verify;

pub use applied::AppliedAdapter;
pub use combine::{Combination, CombineRequest, Conflict, Strategy, combine};
pub use export::{ExportFormat, export};
pub use head::{align_head, order_of};
pub use info::{Difference, Info, LayerDifference, LayerInfo, difference, info, visible_share};
pub use merge::{MergeDtype, MergeRequest, Merged, merge, merged_tensor};
pub use model_dir::{average_models, score_objective, write_tokenizer};
pub use native::{Manifest, save};
pub use vector::needs_device;
pub use verify::{check_examples, check_merged};

use crate::job::RunConfig;
use crate::model::{Decoder, HEAD};
use crate::train::objective::{self, Classification, NextToken, Objective};
use crate::weights::Weights;
use crate::{Error, Result, decoder, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The outputs of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The task's id, or another distinguishing name.
    pub name: String,
    /// Names of its outputs, which are rows of [`HEAD`]; none for the vocabulary head.
    pub labels: Vec<String>,
    /// [`Objective::name`]
    #[serde(default = "classification")]
    pub objective: String,
    /// The run that trained it, unless another tool did.
    pub config: Option<RunConfig>,
}

/// The objective of heads stored before there were others.
fn classification() -> String {
    Classification { classes: 2 }.name().to_owned()
}

impl Head {
    /// The vocabulary head, for a file that does not describe one.
    fn next_token() -> Head {
        Head { name: "text".into(), labels: vec![], objective: NextToken {}.name().into(), config: None }
    }

    /// Errors: an objective that this version does not know, or with a different number of outputs.
    pub fn objective(&self) -> Result<Arc<dyn Objective>> {
        objective::named(&self.objective, self.labels.len())
    }

    /// Whether the labels are mere numbers, which other tools write for unnamed classes.
    pub fn unnamed(&self) -> bool {
        self.labels.iter().enumerate().all(|(i, label)| *label == format!("LABEL_{i}"))
    }
}

/// The format an adapter was read from, with its specific data.
#[derive(Clone, Debug)]
pub enum Kind {
    Native(Box<Manifest>),
    Peft(peft::Lora),
    /// Single elements and whole tensors, in another tool's format.
    Deltas {
        format: &'static str,
        method: &'static str,
    },
    Combined(Box<combine::Manifest>),
    /// A full model without any adapter.
    Model,
}

/// An adapter read from disk.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub dir: PathBuf,
    pub kind: Kind,
    /// Directory of the base model, as the adapter names it.
    pub model: PathBuf,
    /// [`fingerprint`] of the base model; formats of other tools have none.
    pub base: Option<String>,
    /// At least one. [`HEAD`] has their outputs in this order.
    pub heads: Vec<Head>,
    /// Trained values by tensor name, as in [`crate::method::Trained::name`].
    pub values: BTreeMap<String, Vec<f32>>,
    /// Explicit index sets by parameter, flat and ascending; the method draws the others.
    pub indices: BTreeMap<String, Vec<u32>>,
}

/// Reads the adapter in `path`: an adapter directory of any format, a run directory, or a full model. `model`
/// replaces the base model that the adapter names.
///
/// Errors: no adapter there; an unknown format, or a setting with unsupported arithmetic; values that were altered
/// since they were saved, or are not finite.
pub fn load(path: &Path, model: Option<&Path>) -> Result<Adapter> {
    let mut adapter = read(path, model)?;
    if let Some(model) = model {
        adapter.model = model.to_owned();
    }
    for (name, values) in &adapter.values {
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let dir = adapter.dir.display();
            return Err(Error::Weights(format!("{dir}: {name} holds NaN or infinity at {at}; the adapter is damaged")));
        }
    }
    Ok(adapter)
}

fn read(path: &Path, model: Option<&Path>) -> Result<Adapter> {
    let inside = path.join("adapter");
    let dir = if files::is_file(&inside.join(native::MANIFEST)) { &inside } else { path };
    let manifest = dir.join(native::MANIFEST);
    if files::is_file(&manifest) {
        return match native::read_format(dir)?.as_str() {
            native::FORMAT => native::load(dir),
            combine::FORMAT => combine::load(dir),
            other => Err(Error::Weights(format!(
                "{}: format `{other}`, this version reads `{}` and `{}`",
                manifest.display(),
                native::FORMAT,
                combine::FORMAT
            ))),
        };
    }
    if files::is_file(&path.join(peft::CONFIG)) {
        return peft::load(path, model);
    }
    if files::is_file(&path.join(sparse_deltas::VALUES)) {
        return sparse_deltas::load(path, model);
    }
    if let Some(pickle) = pickled(path) {
        return Err(Error::Weights(format!(
            "{}: a pickle, which can run code when read and is never opened. Convert it: in Python, \
             `from safetensors.torch import save_file; save_file(torch.load(\"{}\", weights_only=True), \"{}\")`, for \
             nested dictionaries with the keys `indices.NAME` and `deltas.NAME`",
            path.join(pickle).display(),
            pickle,
            if pickle.starts_with("adapter") { peft::VALUES } else { sparse_deltas::VALUES },
        )));
    }
    if RunConfig::of_run(path).is_ok() {
        return Err(Error::Weights(format!(
            "{}: the run has no adapter: it ended before its first step; continue it with --resume",
            path.display()
        )));
    }
    if decoder::is_model(path) {
        return full_model(path);
    }
    Err(Error::Weights(format!(
        "{}: no adapter here: neither {m} nor adapter/{m}, {}, {} or the config.json of a model exists; give a run \
         directory",
        path.display(),
        peft::CONFIG,
        sparse_deltas::VALUES,
        m = native::MANIFEST,
    )))
}

fn pickled(dir: &Path) -> Option<&'static str> {
    ["adapter_model.bin", "sparse_deltas.pt"].into_iter().find(|name| files::is_file(&dir.join(name)))
}

/// A full model as an adapter that changes nothing.
fn full_model(dir: &Path) -> Result<Adapter> {
    let head = own_head(dir)?;
    Ok(Adapter {
        dir: dir.to_owned(),
        kind: Kind::Model,
        model: dir.to_owned(),
        base: None,
        heads: vec![head],
        values: BTreeMap::new(),
        indices: BTreeMap::new(),
    })
}

/// The head of a full model: its [`HEAD`], or else the vocabulary head.
fn own_head(dir: &Path) -> Result<Head> {
    match Weights::open(dir)?.get(HEAD) {
        Some(head) => score_head(dir, head.shape.first().copied().unwrap_or(0)),
        None => Ok(Head::next_token()),
    }
}

/// A head of this many outputs, described only by the model's configuration.
fn score_head(model: &Path, outputs: usize) -> Result<Head> {
    let decoder = decoder::open(model)?;
    let objective = model_dir::score_objective(&decoder, outputs).into();
    Ok(Head { name: "score".into(), labels: labels(&decoder, outputs), objective, config: None })
}

/// The labels in a configuration if their number matches the outputs; otherwise numbers.
fn labels(decoder: &Decoder, outputs: usize) -> Vec<String> {
    match decoder.labels.len() == outputs {
        true => decoder.labels.clone(),
        false => (0..outputs).map(|i| format!("LABEL_{i}")).collect(),
    }
}
