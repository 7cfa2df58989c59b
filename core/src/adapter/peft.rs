//! PEFT's LoRA directories: `adapter_config.json` and `adapter_model.safetensors`, as peft 0.21 reads and writes them.

use super::{Adapter, Head, Kind, score_head};
use crate::method::adaptation::extra_name;
use crate::model::{Decoder, HEAD};
use crate::weights::{Dtype, OutTensor, TensorFile, atomic_write, save};
use crate::{Error, Result, files};
use regex::Regex;
use serde_json::{Map, Value, json};
use sparta_plugin::method::{ExtraTensor, Init};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

pub const CONFIG: &str = "adapter_config.json";
pub const VALUES: &str = "adapter_model.safetensors";
/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";
/// Values of `task_type`.
const CLASSIFIER: &str = "SEQ_CLS";
const LANGUAGE_MODEL: &str = "CAUSAL_LM";

/// The LoRA layers of an adapter by parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lora {
    pub layers: BTreeMap<String, LoraLayer>,
}

/// `W + (alpha / r) B A` with A `[r, input]` and B `[output, r]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayer {
    pub r: usize,
    pub alpha: f64,
    pub input: usize,
    pub output: usize,
}

impl LoraLayer {
    pub fn tensors(&self) -> Vec<ExtraTensor> {
        let tensor = |name: &str, shape: Vec<usize>| ExtraTensor::new(name, shape, Init::Zeros);
        vec![tensor("lora_A", vec![self.r, self.input]), tensor("lora_B", vec![self.output, self.r])]
    }
}

/// Keys of `alpha_pattern`: more than any model has layers.
const PATTERNS: usize = 4096;

/// Keys that change the arithmetic when they have another value than these.
const ONLY: [(&str, &[&str]); 14] = [
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
    // The others subtract from the base weights at the start, so that the adapter alone does not tell the model.
    ("init_lora_weights", &["true", "false", "\"gaussian\"", "\"eva\"", "\"orthogonal\""]),
];

/// Reads a LoRA classifier or language model. `model` is the base, if not the one that the configuration names.
///
/// Errors: another kind of adapter; a setting with another arithmetic (DoRA and the like), by name; a pickle; tensors
/// that are missing, unknown or of the wrong shape.
pub fn load(dir: &Path, model: Option<&Path>) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    let text = files::read(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    let config: Map<String, Value> = serde_json::from_slice(&text)
        .map_err(|e| Error::Weights(format!("{}: not a JSON object: {e}", path.display())))?;
    let mut config = Config { path: &path, keys: &config, alphas: Vec::new() };
    config.check()?;
    config.alphas = config.alpha_pattern()?;
    let values_path = dir.join(VALUES);
    if !values_path.is_file() {
        return Err(Error::Weights(match dir.join("adapter_model.bin").is_file() {
            true => format!(
                "{}: a pickle, which can run code when read and is never opened. Convert it: in Python, \
                 `PeftModel.from_pretrained(base, dir).save_pretrained(out, safe_serialization=True)`",
                dir.join("adapter_model.bin").display()
            ),
            false => format!("{}: missing; is the download complete?", values_path.display()),
        }));
    }
    let file = TensorFile::open(&values_path)?;
    let (lora, values) = config.read(&file)?;
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
    if !model.join("config.json").is_file() {
        return Err(Error::Usage(format!(
            "{}: the base model `{}` is not a directory here; give it with --model",
            path.display(),
            model.display()
        )));
    }
    let head = match outputs {
        Some(outputs) => score_head(&model, outputs)?,
        None => Head::next_token(),
    };
    Ok(Adapter {
        dir: dir.to_owned(),
        kind: Kind::Peft(lora),
        model,
        base: None,
        heads: vec![head],
        values,
        indices: BTreeMap::new(),
    })
}

struct Config<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
    /// [`Config::alpha_pattern`]
    alphas: Vec<(Regex, f64)>,
}

impl Config<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key).and_then(Value::as_str)
    }

    fn error(&self, what: String) -> Error {
        Error::Weights(format!("{}: {what}", self.path.display()))
    }

    fn check(&self) -> Result<()> {
        match self.text("peft_type") {
            Some("LORA") => {}
            other => return Err(self.error(format!("`peft_type` is {other:?}, only LORA is read"))),
        }
        if let Some(task) = self.text("task_type").filter(|task| ![CLASSIFIER, LANGUAGE_MODEL].contains(task)) {
            return Err(self.error(format!("`task_type` is {task}, expected {CLASSIFIER} or {LANGUAGE_MODEL}")));
        }
        for (key, allowed) in ONLY {
            let Some(value) = self.keys.get(key).filter(|v| !v.is_null()) else { continue };
            if !allowed.contains(&value.to_string().as_str()) {
                return Err(self.error(format!(
                    "`{key}` is {value}, which changes the computation in a way that is not supported; merge the \
                     adapter with PEFT (`merge_and_unload`) and use the merged model"
                )));
            }
        }
        Ok(())
    }

    fn number(&self, key: &str) -> Result<f64> {
        let number = self.keys.get(key).and_then(Value::as_f64).filter(|x| x.is_finite());
        number.ok_or_else(|| self.error(format!("`{key}` is {:?}, expected a number", self.keys.get(key))))
    }

    /// The values of `alpha_pattern`. As in PEFT, a key is a regular expression that the module's name ends with.
    fn alpha_pattern(&self) -> Result<Vec<(Regex, f64)>> {
        let Some(Value::Object(patterns)) = self.keys.get("alpha_pattern") else { return Ok(Vec::new()) };
        if patterns.len() > PATTERNS {
            return Err(self.error(format!("`alpha_pattern` has {} keys, at most {PATTERNS} are read", patterns.len())));
        }
        let compile = |(pattern, alpha): (&String, &Value)| {
            let regex = Regex::new(&format!("^(.*\\.)?({pattern})$"))
                .map_err(|e| self.error(format!("`alpha_pattern` has the key `{pattern}`: {e}")))?;
            let alpha = alpha.as_f64().filter(|x| x.is_finite());
            Ok((regex, alpha.ok_or_else(|| self.error(format!("`alpha_pattern.{pattern}` is not a number")))?))
        };
        patterns.iter().map(compile).collect()
    }

    /// `lora_alpha`, unless `alpha_pattern` has another value for the module.
    fn alpha(&self, module: &str) -> Result<f64> {
        let mut found = self.alphas.iter().filter(|(regex, _)| regex.is_match(module)).map(|(_, alpha)| *alpha);
        let Some(first) = found.next() else { return self.number("lora_alpha") };
        match found.all(|alpha| alpha == first) {
            true => Ok(first),
            false => Err(self.error(format!("`alpha_pattern` has several values for {module}"))),
        }
    }

    fn read(&self, file: &TensorFile) -> Result<(Lora, BTreeMap<String, Vec<f32>>)> {
        let bad = |what: String| Error::Weights(format!("{}: {what}", file.path().display()));
        let (mut lora, mut values) = (Lora::default(), BTreeMap::new());
        for key in file.names() {
            let name =
                key.strip_prefix(PREFIX).ok_or_else(|| bad(format!("`{key}` does not begin with `{PREFIX}`")))?;
            let (shape, data) = file.floats(key)?;
            if let Some(module) = name.strip_suffix(".lora_A.weight") {
                let b_key = format!("{PREFIX}{module}.lora_B.weight");
                let (b_shape, b) = file.floats(&b_key)?;
                let (&[r, input], &[output, rank]) = (&shape[..], &b_shape[..]) else {
                    return Err(bad(format!("`{key}` {shape:?} and `{b_key}` {b_shape:?}: expected matrices")));
                };
                if r != rank || r == 0 {
                    return Err(bad(format!("`{key}` {shape:?} and `{b_key}` {b_shape:?} do not fit each other")));
                }
                // PEFT's scale is alpha / r, with rank stabilisation alpha / sqrt(r).
                let stable = self.keys.get("use_rslora").and_then(Value::as_bool) == Some(true);
                let alpha = self.alpha(module)? * if stable { (r as f64).sqrt() } else { 1.0 };
                let module = of_text(module);
                values.insert(format!("{module}.lora_A"), data);
                values.insert(format!("{module}.lora_B"), b);
                let parameter = format!("{module}.weight");
                lora.layers.insert(parameter, LoraLayer { r, alpha, input, output });
            } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
                if file.get(&format!("{PREFIX}{module}.lora_A.weight")).is_none() {
                    return Err(bad(format!("`{key}` has no lora_A")));
                }
            } else if name.contains("lora_") {
                return Err(bad(format!("`{key}`: only lora_A and lora_B of linear layers are supported")));
            } else {
                values.insert(of_text(name), data);
            }
        }
        Ok((lora, values))
    }
}

/// What transformers calls the backbone's modules, and what it calls them in a model that also reads images.
const MODULES: [&str; 2] = ["model.", "model.language_model."];

/// A name as a text model has it.
fn of_text(name: &str) -> String {
    let [text, inside] = MODULES;
    name.strip_prefix(inside).map_or_else(|| name.to_owned(), |rest| format!("{text}{rest}"))
}

/// What is written besides the layers.
pub struct Export<'a> {
    pub lora: &'a Lora,
    pub values: &'a BTreeMap<String, Vec<f32>>,
    pub head: &'a Head,
    pub model: &'a Path,
    pub decoder: &'a Decoder,
    /// The dropout that was trained with; it does not change the result.
    pub dropout: f64,
}

impl Export<'_> {
    /// A name as the base model has it in transformers.
    fn named(&self, name: &str) -> String {
        let [text, inside] = MODULES;
        let rest = name.strip_prefix(text).filter(|_| self.decoder.reads_images);
        rest.map_or_else(|| name.to_owned(), |rest| format!("{inside}{rest}"))
    }
}

/// Writes a directory that `peft.PeftModel.from_pretrained` loads.
pub fn write(dir: &Path, export: &Export) -> Result<()> {
    files::create_dirs(dir).map_err(Error::io(dir))?;
    let mut tensors = Vec::new();
    let mut add = |key: String, name: &str, shape: Vec<usize>| -> Result<()> {
        let values = export.values.get(name).ok_or_else(|| Error::Weights(format!("{name} is missing")))?;
        let bytes = Cow::Borrowed(bytemuck::cast_slice(values));
        tensors.push(OutTensor { name: format!("{PREFIX}{key}"), dtype: Dtype::F32, shape, bytes });
        Ok(())
    };
    for (parameter, layer) in &export.lora.layers {
        for tensor in layer.tensors() {
            let name = extra_name(parameter, &tensor);
            add(format!("{}.weight", export.named(&name)), &name, tensor.shape)?;
        }
    }
    let outputs = export.head.labels.len();
    if outputs > 0 {
        let head = export.values.get(HEAD).map_or(0, Vec::len);
        add(HEAD.into(), HEAD, vec![outputs, head / outputs])?;
    }
    save(&dir.join(VALUES), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    let path = dir.join(CONFIG);
    let text = serde_json::to_string_pretty(&config(export)).map_err(|e| Error::Weights(e.to_string()))?;
    atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
}

/// `adapter_config.json` with the keys of peft 0.21 that say how the adapter is applied.
fn config(export: &Export) -> Value {
    let layers = &export.lora.layers;
    let module = |parameter: &str| export.named(parameter.strip_suffix(".weight").unwrap_or(parameter));
    let last = |parameter: &str| module(parameter).rsplit('.').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = layers.keys().map(|p| last(p)).collect();
    // `q_proj` means that of every layer; where only some have one, all are named in full. What reads images has layers of
    // that name, too.
    let everywhere = names.len() * export.decoder.layers == layers.len() && !export.decoder.reads_images;
    let targets: BTreeSet<String> = if everywhere { names } else { layers.keys().map(|p| module(p)).collect() };
    let (r, alpha) = layers.values().next().map_or((8, 8.0), |layer| (layer.r, layer.alpha));
    let others = || layers.iter().filter(|(_, layer)| layer.r != r || layer.alpha != alpha);
    let ranks: BTreeMap<String, usize> = others().map(|(p, layer)| (regex::escape(&module(p)), layer.r)).collect();
    let alphas: BTreeMap<String, Value> =
        others().map(|(p, layer)| (regex::escape(&module(p)), number(layer.alpha))).collect();
    let classifies = !export.head.labels.is_empty();
    json!({
        "alpha_pattern": alphas,
        "auto_mapping": null,
        "base_model_name_or_path": export.model.display().to_string(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": number(alpha),
        "lora_bias": false,
        "lora_dropout": export.dropout,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": if classifies { json!(["classifier", "score"]) } else { Value::Null },
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": ranks,
        "revision": null,
        "target_modules": targets,
        "task_type": if classifies { CLASSIFIER } else { LANGUAGE_MODEL },
        "use_dora": false,
        "use_rslora": false,
    })
}

/// A whole number without a fraction: PEFT declares `lora_alpha` as an integer.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { Value::from(x as i64) } else { Value::from(x) }
}
