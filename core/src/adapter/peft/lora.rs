//! LoRA layers.

use super::{Config, PREFIX, module, named, names, of_text, targets, task_type, write_files};
use crate::adapter::Head;
use crate::method::adaptation::extra_name;
use crate::model::{Decoder, HEAD};
use crate::weights::{Dtype, OutTensor, TensorFile};
use crate::{Error, Result};
use regex::Regex;
use serde_json::{Value, json};
use sparta_plugin::method::{ExtraTensor, Init};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

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

/// The most keys of `alpha_pattern`: more than any model has layers.
const PATTERNS: usize = 4096;

/// The values of `alpha_pattern`. As in PEFT, a key is a regular expression that matches the end of a module's name.
fn alpha_pattern(config: &Config) -> Result<Vec<(Regex, f64)>> {
    let Some(Value::Object(patterns)) = config.keys.get("alpha_pattern") else { return Ok(Vec::new()) };
    if patterns.len() > PATTERNS {
        return Err(config.error(format!("`alpha_pattern` has {} keys, at most {PATTERNS} are read", patterns.len())));
    }
    let compile = |(pattern, alpha): (&String, &Value)| {
        let regex = Regex::new(&format!("^(.*\\.)?({pattern})$"))
            .map_err(|e| config.error(format!("`alpha_pattern` has the key `{pattern}`: {e}")))?;
        let alpha = alpha.as_f64().filter(|x| x.is_finite());
        Ok((regex, alpha.ok_or_else(|| config.error(format!("`alpha_pattern.{pattern}` is not a number")))?))
    };
    patterns.iter().map(compile).collect()
}

/// `lora_alpha`, unless `alpha_pattern` has a different value for the module.
fn alpha(config: &Config, patterns: &[(Regex, f64)], module: &str) -> Result<f64> {
    let mut found = patterns.iter().filter(|(regex, _)| regex.is_match(module)).map(|(_, alpha)| *alpha);
    let Some(first) = found.next() else { return config.number("lora_alpha") };
    match found.all(|alpha| alpha == first) {
        true => Ok(first),
        false => Err(config.error(format!("`alpha_pattern` has several values for {module}"))),
    }
}

pub(super) fn read(config: &Config, file: &TensorFile) -> Result<(Lora, BTreeMap<String, Vec<f32>>)> {
    let bad = |what: String| Error::Weights(format!("{}: {what}", file.path().display()));
    let patterns = alpha_pattern(config)?;
    let (mut lora, mut values) = (Lora::default(), BTreeMap::new());
    for (key, name) in names(file)? {
        let (shape, data) = file.floats(key)?;
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let b_key = format!("{PREFIX}{module}.lora_B.weight");
            let (b_shape, b) = file.floats(&b_key)?;
            let (&[r, input], &[output, rank]) = (&shape[..], &b_shape[..]) else {
                return Err(bad(format!("`{key}` {shape:?} and `{b_key}` {b_shape:?}: expected matrices")));
            };
            if r != rank || r == 0 {
                return Err(bad(format!("`{key}` {shape:?} and `{b_key}` {b_shape:?} do not match")));
            }
            // PEFT's scale is alpha / r, with rank stabilisation alpha / sqrt(r).
            let stable = config.keys.get("use_rslora").and_then(Value::as_bool) == Some(true);
            let alpha = alpha(config, &patterns, module)? * if stable { (r as f64).sqrt() } else { 1.0 };
            let parameter = format!("{}.weight", of_text(module));
            values.insert(format!("{}.lora_A", of_text(module)), data);
            values.insert(format!("{}.lora_B", of_text(module)), b);
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

/// A LoRA adapter to be written.
pub struct LoraExport<'a> {
    pub lora: &'a Lora,
    pub values: &'a BTreeMap<String, Vec<f32>>,
    pub head: &'a Head,
    pub model: &'a Path,
    pub decoder: &'a Decoder,
    /// The dropout used in training; it does not change the result.
    pub dropout: f64,
}

impl LoraExport<'_> {
    /// Writes a directory that `peft.PeftModel.from_pretrained` loads.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        let mut add = |key: String, name: &str, shape: Vec<usize>| -> Result<()> {
            let values = self.values.get(name).ok_or_else(|| Error::Weights(format!("{name} is missing")))?;
            let bytes = Cow::Borrowed(bytemuck::cast_slice(values));
            tensors.push(OutTensor { name: key, dtype: Dtype::F32, shape, bytes });
            Ok(())
        };
        for (parameter, layer) in &self.lora.layers {
            for tensor in layer.tensors() {
                let name = extra_name(parameter, &tensor);
                add(format!("{}.weight", named(self.decoder, &name)), &name, tensor.shape)?;
            }
        }
        let outputs = self.head.labels.len();
        if outputs > 0 {
            let head = self.values.get(HEAD).map_or(0, Vec::len);
            add(HEAD.into(), HEAD, vec![outputs, head / outputs])?;
        }
        write_files(dir, self.head, tensors, &self.config())
    }

    /// `adapter_config.json` with the keys of peft 0.21 that say how the adapter is applied.
    fn config(&self) -> Value {
        let layers = &self.lora.layers;
        let (r, alpha) = layers.values().next().map_or((8, 8.0), |layer| (layer.r, layer.alpha));
        let others = || layers.iter().filter(|(_, layer)| layer.r != r || layer.alpha != alpha);
        let pattern = |parameter: &str| regex::escape(&named(self.decoder, module(parameter)));
        let ranks: BTreeMap<String, usize> = others().map(|(p, layer)| (pattern(p), layer.r)).collect();
        let alphas: BTreeMap<String, Value> = others().map(|(p, layer)| (pattern(p), number(layer.alpha))).collect();
        let classifies = !self.head.labels.is_empty();
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.model.display().to_string(),
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
            "lora_dropout": self.dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": if classifies { json!(["classifier", "score"]) } else { Value::Null },
            "peft_type": "LORA",
            "r": r,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": targets(self.decoder, layers.keys().map(String::as_str)),
            "task_type": task_type(self.head),
            "use_dora": false,
            "use_rslora": false,
        })
    }
}

/// A whole number without a fraction: PEFT declares `lora_alpha` as an integer.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { Value::from(x as i64) } else { Value::from(x) }
}
