//! Writes full models in the Hugging Face layout: `config.json`, the tokenizer's files, and the weights, sharded with
//! an index if they are large.

use super::{Head, own_head};
use crate::gguf::{self, Gguf};
use crate::model::{Decoder, PROBLEM_TYPES, check_weights, from_f32};
use crate::weights::{TensorSpec, Weights, atomic_write, safetensors_dtype, save_with};
use crate::{Error, Result, decoder, files};
use serde_json::{Map, Value, json};
use sparta_graph::DType;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The tokenizer's files, in any of the layouts that transformers reads.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// A model, as a directory or a GGUF file, which appears under its name only once it is complete.
pub struct Output {
    out: PathBuf,
    partial: PathBuf,
}

/// Whether this is the name of a GGUF file.
pub fn is_gguf(out: &Path) -> bool {
    out.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

impl Output {
    /// Errors: `out` already exists, or cannot be written.
    pub fn create(out: &Path) -> Result<Output> {
        let empty = files::is_dir(out) && files::list(out).map_err(Error::io(out))?.is_empty();
        if files::exists(out) && !empty {
            return Err(Error::Usage(format!("{} already exists; give another --out, or remove it", out.display())));
        }
        let name = out
            .file_name()
            .ok_or_else(|| Error::Usage(format!("{}: not a valid name for a new directory", out.display())))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = out.with_file_name(partial);
        files::create_dirs(&partial).map_err(Error::io(&partial))?;
        Ok(Output { out: out.to_owned(), partial })
    }

    /// The place of the directory or the file until [`Output::finish`].
    pub fn path(&self) -> PathBuf {
        match self.out.file_name().filter(|_| is_gguf(&self.out)) {
            Some(name) => self.partial.join(name),
            None => self.partial.clone(),
        }
    }

    /// Writes the base model's configuration, with this head, and its tokenizer.
    pub fn describe(&self, base: &Path, head: &Head, pad: Option<u32>, dtype: DType) -> Result<()> {
        let config = model_config(base, head, pad, Some(dtype))?;
        write_json(&self.partial.join("config.json"), &config)?;
        write_tokenizer(base, &self.partial)
    }

    /// Writes the weights, `shard_bytes` to a file at most unless one tensor alone is larger; `values` makes them one
    /// at a time. Returns the number of files and the bytes of all tensors.
    pub fn weights<'a>(
        &self,
        specs: &[TensorSpec],
        shard_bytes: u64,
        mut values: impl FnMut(&TensorSpec) -> Result<Cow<'a, [u8]>>,
    ) -> Result<(usize, u64)> {
        let size = |spec: &TensorSpec| (spec.shape.iter().product::<usize>() * spec.dtype.bitsize() / 8) as u64;
        let mut shards: Vec<Vec<TensorSpec>> = vec![vec![]];
        let (mut room, mut total) = (shard_bytes, 0);
        for spec in specs {
            let bytes = size(spec);
            if bytes > room && shards.last().is_some_and(|shard| !shard.is_empty()) {
                shards.push(vec![]);
                room = shard_bytes;
            }
            room = room.saturating_sub(bytes);
            total += bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push(spec.clone());
            }
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let count = shards.len();
        let mut map = BTreeMap::new();
        for (i, shard) in shards.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            map.extend(shard.iter().map(|spec| (spec.name.clone(), name.clone())));
            save_with(&self.partial.join(&name), shard, &metadata, &mut values)?;
        }
        if count > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            write_json(&self.partial.join("model.safetensors.index.json"), &index)?;
        }
        Ok((count, total))
    }

    /// Gives the directory or the file its name.
    pub fn finish(self) -> Result<()> {
        if files::is_dir(&self.out) {
            files::remove_empty(&self.out).map_err(Error::io(&self.out))?;
        }
        files::publish(&self.path(), &self.out).map_err(Error::io(&self.out))
    }
}

/// Writes a model's tokenizer into a directory.
pub fn write_tokenizer(model: &Path, dir: &Path) -> Result<()> {
    if let Some(file) = gguf::locate(model)? {
        let gguf = Gguf::open(&file)?;
        write_json(&dir.join("tokenizer.json"), &gguf.tokenizer()?)?;
        return write_json(&dir.join("tokenizer_config.json"), &gguf.tokenizer_config()?);
    }
    for name in TOKENIZER_FILES {
        let from = model.join(name);
        if files::is_file(&from) {
            files::copy(&from, &dir.join(name)).map_err(Error::io(from))?;
        }
    }
    Ok(())
}

impl Drop for Output {
    fn drop(&mut self) {
        // After `finish` there is nothing; otherwise the first error is the one to report.
        let _ = files::remove(&self.partial);
    }
}

/// The objectives of classifiers, in the order of [`PROBLEM_TYPES`].
const OBJECTIVES: [&str; 3] = ["classification", "multi-label classification", "regression"];

/// The objective of a classifier's head: as in transformers, a single output without `problem_type` means regression.
pub fn score_objective(decoder: &Decoder, outputs: usize) -> &'static str {
    let kind = decoder.problem_type.as_deref().and_then(|given| PROBLEM_TYPES.iter().position(|kind| *kind == given));
    OBJECTIVES[kind.unwrap_or(if outputs == 1 { 2 } else { 0 })]
}

/// Whether `config.json` names a model with a vocabulary head.
pub fn is_causal(dir: &Path) -> Result<bool> {
    let config = decoder::config(dir)?;
    let classes = config.get("architectures").and_then(Value::as_array);
    Ok(classes.is_some_and(|classes| classes.iter().any(|c| c.as_str().is_some_and(|c| c.ends_with("ForCausalLM")))))
}

/// The base model's `config.json`, or its text part, changed for this head. The type of the weights is written under
/// the file's own key, by default `torch_dtype`. `pad` is the padding token used with a classifier's texts, by which
/// transformers finds their last token.
pub fn model_config(base: &Path, head: &Head, pad: Option<u32>, dtype: Option<DType>) -> Result<Map<String, Value>> {
    let mut config = decoder::config(base)?;
    let decoder = Decoder::parse(&base.join("config.json"), &config)?;
    let classifies = head.objective()?.pools();
    let [causal, classifier, _] = decoder.family.classes();
    config.insert("architectures".into(), json!([if classifies { classifier } else { causal }]));
    // The number of labels follows from `id2label`; stating it again could only contradict.
    for key in ["num_labels", "id2label", "label2id", "problem_type"] {
        config.remove(key);
    }
    if classifies {
        describe_classes(&mut config, head);
    }
    if let Some(dtype) = dtype {
        let name = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            DType::F32 | DType::U32 => "float32",
        };
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.remove("torch_dtype");
        config.insert(key.into(), name.into());
    }
    if classifies && decoder.pad_token_id != pad {
        config.insert("pad_token_id".into(), pad.into());
    }
    Ok(config)
}

/// Labels and kind of a classifier.
fn describe_classes(config: &mut Map<String, Value>, head: &Head) {
    let labels = || head.labels.iter().enumerate();
    let names = labels().map(|(i, label)| (i.to_string(), Value::from(label.as_str())));
    config.insert("id2label".into(), Value::Object(names.collect()));
    let ids = labels().map(|(i, label)| (label.clone(), Value::from(i)));
    config.insert("label2id".into(), Value::Object(ids.collect()));
    let kind = OBJECTIVES.iter().position(|objective| *objective == head.objective);
    config.extend(kind.map(|kind| ("problem_type".to_owned(), Value::from(PROBLEM_TYPES[kind]))));
}

pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Weights(e.to_string()))?;
    atomic_write(path, |file| writeln!(file, "{text}").map_err(Error::io(path)))
}

/// Averages full models of one architecture and one task, tensor by tensor: a model soup (Wortsman et al. 2022,
/// "Model soups", section 2): theta = sum of w_k theta_k with weights that add up to 1. Types are those of the first.
///
/// Errors: models whose tensors or labels differ; weights that are not as many as models.
pub fn average_models(models: &[PathBuf], weights: &[f64], out: &Path, shard_bytes: u64) -> Result<(usize, u64)> {
    let total: f64 = weights.iter().sum();
    let [first, ..] = models else { return Err(Error::Usage("there is no model to average".into())) };
    if weights.len() != models.len() || !(total > 0.0 && total.is_finite()) {
        return Err(Error::Usage(format!("{} models need as many --weights, with a sum above 0", models.len())));
    }
    let decoder = decoder::open(first)?;
    let head = own_head(first)?;
    let kind = head.objective()?.head();
    let opened: Vec<Weights> = models.iter().map(Weights::open).collect::<Result<_>>()?;
    let mut parameters = Vec::new();
    for (dir, weights) in models.iter().zip(&opened) {
        let other = decoder::open(dir)?;
        let same_shape = other.parameters(kind) == decoder.parameters(kind) || other.dtype != decoder.dtype;
        let same_reading = (&other.labels, other.pad_token_id) == (&decoder.labels, decoder.pad_token_id);
        if other.family != decoder.family || !same_reading || !same_shape {
            return Err(Error::Usage(format!(
                "{} and {} are not the same architecture with the same labels and the same pad_token_id; only models \
                 that agree in these can be averaged",
                first.display(),
                dir.display()
            )));
        }
        let checked = check_weights(&decoder, weights, kind)?;
        if own_head(dir)? != head {
            return Err(Error::Usage(format!(
                "{} and {} were trained for different tasks: their heads differ",
                first.display(),
                dir.display()
            )));
        }
        parameters = if parameters.is_empty() { checked } else { parameters };
    }
    let specs: Vec<TensorSpec> = parameters
        .iter()
        .map(|p| TensorSpec { name: p.name.clone(), dtype: safetensors_dtype(p.dtype), shape: p.shape.clone() })
        .collect();
    let output = Output::create(out)?;
    output.describe(first, &head, decoder.pad_token_id, parameters[0].dtype)?;
    let written = output.weights(&specs, shard_bytes, |spec| {
        let mut sum: Vec<f64> = vec![0.0; spec.shape.iter().product()];
        for (model, weight) in opened.iter().zip(weights) {
            let view = model.get(&spec.name).and_then(|view| view.to_f32());
            let values = view.ok_or_else(|| Error::Weights(format!("{} is missing", spec.name)))?;
            sum.iter_mut().zip(values).for_each(|(s, v)| *s += weight / total * f64::from(v));
        }
        let mean: Vec<f32> = sum.into_iter().map(|x| x as f32).collect();
        let dtype = parameters.iter().find(|p| p.name == spec.name).map_or(DType::F32, |p| p.dtype);
        from_f32(dtype, &mean)
            .map(Cow::Owned)
            .ok_or_else(|| Error::Weights(format!("{} is not a float tensor", spec.name)))
    })?;
    output.finish()?;
    Ok(written)
}
