//! PEFT's adapter directories, `adapter_config.json` and `adapter_model.safetensors`, as peft 0.21 reads and writes
//! them: LoRA, and of the sparse methods Super-Tuning and SHiRA.

mod lora;
mod sparse;

pub use lora::{Lora, LoraExport, LoraLayer};
pub use sparse::SparseExport;

use super::{Adapter, Head, Kind, score_head};
use crate::model::{Decoder, HEAD};
use crate::weights::{OutTensor, TensorFile, atomic_write, save};
use crate::{Error, Result, decoder, files};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

pub const CONFIG: &str = "adapter_config.json";
pub const VALUES: &str = "adapter_model.safetensors";
/// PEFT's prefix of the model's own names.
const PREFIX: &str = "base_model.model.";
/// Values of `task_type`.
const CLASSIFIER: &str = "SEQ_CLS";
const LANGUAGE_MODEL: &str = "CAUSAL_LM";
/// transformers' prefix of the backbone's modules, and the one in a multimodal model.
const MODULES: [&str; 2] = ["model.", "model.language_model."];
/// Metadata keys for the names of the classes and the objective, which PEFT does not store.
const LABELS: &str = "labels";
const OBJECTIVE: &str = "objective";

/// Reads a classifier or language model. `model` is the base, if not the one that the configuration names.
///
/// Errors: another kind of adapter; a setting with other arithmetic, such as DoRA, by name; a pickle; tensors that are
/// missing, unknown or of the wrong shape.
pub fn load(dir: &Path, model: Option<&Path>) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    let text = files::read(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    let config: Map<String, Value> = serde_json::from_slice(&text)
        .map_err(|e| Error::Weights(format!("{}: not a JSON object: {e}", path.display())))?;
    let config = Config { path: &path, keys: &config };
    let kind = config.kind()?;
    let values_path = dir.join(VALUES);
    if !files::is_file(&values_path) {
        return Err(Error::Weights(match files::is_file(&dir.join("adapter_model.bin")) {
            true => format!(
                "{}: a pickle, which can run code when read and is never opened. Convert it: in Python, \
                 `PeftModel.from_pretrained(base, dir).save_pretrained(out, safe_serialization=True)`",
                dir.join("adapter_model.bin").display()
            ),
            false => format!("{}: missing; is the download complete?", values_path.display()),
        }));
    }
    let file = TensorFile::open(&values_path)?;
    let model = match model {
        Some(model) => model.to_owned(),
        None => PathBuf::from(config.text("base_model_name_or_path").ok_or_else(|| {
            Error::Usage(format!("{}: does not name the base model; give it with --model", path.display()))
        })?),
    };
    let outputs = file.get(&format!("{PREFIX}{HEAD}")).map(|head| head.shape.first().copied().unwrap_or(0));
    match (config.text("task_type"), outputs) {
        (Some(CLASSIFIER), None) => {
            let values = values_path.display();
            return Err(Error::Weights(format!("{values}: has no classification head `{PREFIX}{HEAD}`")));
        }
        (Some(LANGUAGE_MODEL), Some(_)) => {
            return Err(config.error(format!("`task_type` is {LANGUAGE_MODEL}, but there are values for `{HEAD}`")));
        }
        _ => {}
    }
    if !decoder::is_model(&model) {
        return Err(Error::Usage(format!(
            "{}: the base model `{}` is not here; give it with --model",
            path.display(),
            model.display()
        )));
    }
    let head = match outputs {
        Some(outputs) => read_head(&model, &file, outputs)?,
        None => Head::next_token(),
    };
    let mut adapter = Adapter {
        dir: dir.to_owned(),
        kind: Kind::Model,
        model,
        base: None,
        heads: vec![head],
        values: BTreeMap::new(),
        indices: BTreeMap::new(),
    };
    match kind {
        PeftType::Lora => {
            let (lora, values) = lora::read(&config, &file)?;
            (adapter.kind, adapter.values) = (Kind::Peft(lora), values);
        }
        PeftType::Supertuning | PeftType::Shira => {
            let decoder = decoder::open(&adapter.model)?;
            let parameters = decoder.parameters(adapter.heads[0].objective()?.head());
            (adapter.values, adapter.indices) = sparse::read(kind, &file, &parameters)?;
            let method = if kind == PeftType::Shira { "shira" } else { "super-tuning" };
            adapter.kind = Kind::Deltas { format: "peft", method };
        }
    }
    Ok(adapter)
}

/// What `peft_type` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PeftType {
    Lora,
    Supertuning,
    Shira,
}

/// Keys that change the arithmetic unless they have one of these values.
const ONLY: [(&str, &[&str]); 16] = [
    ("use_dora", &["false"]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["false"]),
    ("lora_bias", &["false"]),
    ("alora_invocation_tokens", &[]),
    ("kasa_config", &[]),
    ("velora_config", &[]),
    ("monteclora_config", &[]),
    ("arrow_config", &[]),
    ("layer_replication", &[]),
    ("target_parameters", &["[]"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("megatron_config", &[]),
    // The others change the base weights at the start, so that the adapter alone does not determine the model.
    ("init_lora_weights", &["true", "false", "\"gaussian\"", "\"eva\"", "\"orthogonal\""]),
    ("fan_in_fan_out", &["false"]),
    ("save_precomputed_indices", &["true"]),
];

struct Config<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
}

impl Config<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key).and_then(Value::as_str)
    }

    fn error(&self, what: String) -> Error {
        Error::Weights(format!("{}: {what}", self.path.display()))
    }

    /// The kind of adapter. Checks its settings.
    fn kind(&self) -> Result<PeftType> {
        let kind = match self.text("peft_type") {
            Some("LORA") => PeftType::Lora,
            Some("SUPERTUNING") => PeftType::Supertuning,
            Some("SHIRA") => PeftType::Shira,
            other => {
                return Err(self.error(format!("`peft_type` is {other:?}, only LORA, SUPERTUNING and SHIRA are read")));
            }
        };
        if let Some(task) = self.text("task_type").filter(|task| ![CLASSIFIER, LANGUAGE_MODEL].contains(task)) {
            return Err(self.error(format!("`task_type` is {task}, expected {CLASSIFIER} or {LANGUAGE_MODEL}")));
        }
        // Low-rank factors beside the elements, which PEFT calls Supra.
        let supra = (kind == PeftType::Supertuning).then_some(("r", &[][..]));
        for (key, allowed) in ONLY.into_iter().chain(supra) {
            let Some(value) = self.keys.get(key).filter(|v| !v.is_null()) else { continue };
            if !allowed.contains(&value.to_string().as_str()) {
                return Err(self.error(format!(
                    "`{key}` is {value}, which changes the computation in a way that is not supported; merge the \
                     adapter with PEFT (`merge_and_unload`) and use the merged model"
                )));
            }
        }
        Ok(kind)
    }

    fn number(&self, key: &str) -> Result<f64> {
        let number = self.keys.get(key).and_then(Value::as_f64).filter(|x| x.is_finite());
        number.ok_or_else(|| self.error(format!("`{key}` is {:?}, expected a number", self.keys.get(key))))
    }
}

/// The head of a classifier, with the labels stored beside the values, or else the model's.
fn read_head(model: &Path, file: &TensorFile, outputs: usize) -> Result<Head> {
    let mut head = score_head(model, outputs)?;
    let labels = file.metadata().get(LABELS).and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    if let Some(labels) = labels.filter(|labels| labels.len() == outputs) {
        head.labels = labels;
    }
    if let Some(objective) = file.metadata().get(OBJECTIVE) {
        head.objective = objective.clone();
    }
    head.objective()?;
    Ok(head)
}

/// The tensor names in a file of values, without PEFT's prefix, each with its key.
fn names(file: &TensorFile) -> Result<Vec<(&str, &str)>> {
    let named = |key| match str::strip_prefix(key, PREFIX) {
        Some(name) => Ok((key, name)),
        None => Err(Error::Weights(format!("{}: `{key}` does not begin with `{PREFIX}`", file.path().display()))),
    };
    file.names().map(named).collect()
}

/// A name as in a text model.
fn of_text(name: &str) -> String {
    let [text, inside] = MODULES;
    name.strip_prefix(inside).map_or_else(|| name.to_owned(), |rest| format!("{text}{rest}"))
}

/// A name as in the base model in transformers.
fn named(decoder: &Decoder, name: &str) -> String {
    let [text, inside] = MODULES;
    let rest = name.strip_prefix(text).filter(|_| decoder.reads_images);
    rest.map_or_else(|| name.to_owned(), |rest| format!("{inside}{rest}"))
}

/// `model.layers.0.self_attn.q_proj.weight` -> `model.layers.0.self_attn.q_proj`
fn module(parameter: &str) -> &str {
    parameter.strip_suffix(".weight").unwrap_or(parameter)
}

/// `target_modules` for these parameters: `q_proj` means that of every layer; if only some layers have one, or in a
/// multimodal model, whose vision layers share these names, all are named in full.
fn targets<'a>(decoder: &Decoder, parameters: impl ExactSizeIterator<Item = &'a str> + Clone) -> Vec<String> {
    let last = |parameter| module(parameter).rsplit('.').next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = parameters.clone().map(last).collect();
    names.sort();
    names.dedup();
    if names.len() * decoder.layers == parameters.len() && !decoder.reads_images {
        return names;
    }
    parameters.map(|parameter| named(decoder, module(parameter))).collect()
}

fn task_type(head: &Head) -> &'static str {
    if head.labels.is_empty() { LANGUAGE_MODEL } else { CLASSIFIER }
}

/// Writes the two files; names get PEFT's prefix.
fn write_files(dir: &Path, head: &Head, mut tensors: Vec<OutTensor>, config: &Value) -> Result<()> {
    files::create_dirs(dir).map_err(Error::io(dir))?;
    tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, PREFIX));
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    if !head.labels.is_empty() {
        let labels = serde_json::to_string(&head.labels).map_err(|e| Error::Weights(e.to_string()))?;
        metadata.extend([(LABELS.to_owned(), labels), (OBJECTIVE.to_owned(), head.objective.clone())]);
    }
    save(&dir.join(VALUES), &tensors, &metadata)?;
    let path = dir.join(CONFIG);
    let text = serde_json::to_string_pretty(config).map_err(|e| Error::Weights(e.to_string()))?;
    atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
}
