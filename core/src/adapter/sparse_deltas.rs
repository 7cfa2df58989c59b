//! `sparse_deltas.safetensors`, the format of peft-sparta, the second public implementation of SpaRTA:
//! `indices.<param>`, int32 `[k, rank]` coordinates (flat `[k]` is read, too), and `deltas.<param>` `[k]`, for every
//! parameter; beside it the model's `config.json` with the base model under `sparta_pretrained_model`, and
//! `head_init.safetensors` with the initial head `head` `[classes, hidden]`, to which the head's delta is added.

use super::{Adapter, Head, Kind, model_dir, score_head};
use crate::method::{Adaptation, TrainMode};
use crate::model::HEAD;
use crate::weights::{Dtype, OutTensor, TensorFile, Weights, save};
use crate::{Error, Result, decoder, files};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const VALUES: &str = "sparse_deltas.safetensors";
const HEAD_INIT: &str = "head_init.safetensors";
/// Where `config.json` names the base model.
const BASE: &str = "sparta_pretrained_model";

/// Reads a classifier, or a language model if the file has no head and the configuration is a language model's. `model`
/// replaces the base model that `config.json` names.
///
/// Errors: tensors that do not match each other or the model; no initial head; no base model.
pub fn load(dir: &Path, model: Option<&Path>) -> Result<Adapter> {
    let file = TensorFile::open(dir.join(VALUES))?;
    let model = match (model, named_base(dir)?) {
        (Some(model), _) => model.to_owned(),
        (None, Some(model)) if decoder::is_model(&model) => model,
        (None, named) => {
            let named = named.map_or("unknown".into(), |path| format!("`{}`, not a directory here", path.display()));
            return Err(Error::Usage(format!(
                "{}: the base model is {named}; give its directory with --model",
                dir.display()
            )));
        }
    };
    let described = if files::is_file(&dir.join("config.json")) { dir } else { &model };
    let decoder = decoder::open(described)?;
    let causal = file.get(&format!("deltas.{HEAD}")).is_none() && model_dir::is_causal(described)?;
    let head = if causal { Head::next_token() } else { score_head(described, decoder.labels.len())? };
    let kind = head.objective()?.head();
    let mut adapter = Adapter {
        dir: dir.to_owned(),
        kind: Kind::Deltas { format: "sparse-deltas", method: "sparta" },
        base: None,
        heads: vec![head],
        values: BTreeMap::new(),
        indices: BTreeMap::new(),
        model,
    };
    for parameter in decoder.parameters(kind) {
        let (indices, deltas) = (format!("indices.{}", parameter.name), format!("deltas.{}", parameter.name));
        if file.get(&deltas).is_none() {
            continue;
        }
        let set = flat(&file, &indices, &parameter.shape)?;
        let values = file.floats(&deltas)?.1;
        if set.len() != values.len() {
            let (n, k) = (set.len(), values.len());
            return Err(bad(&file, &format!("`{indices}` has {n} elements, `{deltas}` {k}")));
        }
        if parameter.name == HEAD {
            adapter.values.insert(HEAD.into(), whole_head(&adapter, &file, &set, &values, parameter.numel() as usize)?);
        } else if !set.is_empty() {
            adapter.values.insert(format!("delta.{}", parameter.name), values);
            adapter.indices.insert(parameter.name, set);
        }
    }
    let known = |name: &str| {
        let parameter = name.strip_prefix("deltas.").or_else(|| name.strip_prefix("indices."));
        parameter.is_some_and(|p| {
            p == HEAD
                || adapter.indices.contains_key(p)
                || file.floats(&format!("deltas.{p}")).is_ok_and(|d| d.1.is_empty())
        })
    };
    match file.names().find(|name| !known(name)) {
        Some(unknown) => Err(bad(&file, &format!("`{unknown}` does not belong to this model"))),
        None => Ok(adapter),
    }
}

fn bad(file: &TensorFile, what: &str) -> Error {
    Error::Weights(format!("{}: {what}", file.path().display()))
}

fn named_base(dir: &Path) -> Result<Option<PathBuf>> {
    let path = dir.join("config.json");
    if !files::is_file(&path) {
        return Ok(None);
    }
    let text = files::read(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    let config: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::Config(format!("{}: not a JSON object: {e}", path.display())))?;
    Ok(config.get(BASE).and_then(Value::as_str).map(PathBuf::from))
}

/// Coordinates as flat row-major positions, in their order.
fn flat(file: &TensorFile, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
    let (stored, values) = file.integers(name)?;
    let rank = match stored[..] {
        [_] => 1,
        [_, rank] if rank == shape.len() => rank,
        _ => return Err(bad(file, &format!("`{name}` has shape {stored:?}, expected [k, {}] or [k]", shape.len()))),
    };
    let sizes: Vec<usize> = if stored.len() == 1 { vec![shape.iter().product()] } else { shape.to_vec() };
    let position = |coordinates: &[i64]| {
        coordinates.iter().zip(&sizes).try_fold(0u64, |flat, (&c, &size)| {
            usize::try_from(c).ok().filter(|&c| c < size).map(|c| flat * size as u64 + c as u64)
        })
    };
    values
        .chunks(rank)
        .map(|c| position(c).and_then(|p| u32::try_from(p).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| bad(file, &format!("`{name}` points outside of a tensor of shape {shape:?}")))
}

/// The whole head: its initial values, stored beside the deltas or in the base model, plus the deltas.
fn whole_head(adapter: &Adapter, file: &TensorFile, set: &[u32], deltas: &[f32], len: usize) -> Result<Vec<f32>> {
    let path = adapter.dir.join(HEAD_INIT);
    let mut head = if files::is_file(&path) {
        TensorFile::open(&path)?.floats("head")?.1
    } else {
        let weights = Weights::open(&adapter.model)?;
        let stored = weights.get(HEAD).and_then(|view| view.to_f32());
        stored.ok_or_else(|| bad(file, &format!("neither {HEAD_INIT} nor the base model has the initial head")))?
    };
    if head.len() != len {
        return Err(bad(file, &format!("the initial head has {} values, expected {len}", head.len())));
    }
    if !set.is_sorted_by(|a, b| a < b) {
        return Err(bad(file, &format!("`indices.{HEAD}` is not ascending")));
    }
    for (&i, delta) in set.iter().zip(deltas) {
        head[i as usize] += delta;
    }
    Ok(head)
}

/// Writes an adapter whose changes are all sparse. The initial head is written as zeros, so that the delta is the head.
pub fn write(
    dir: &Path,
    adaptation: &Adaptation,
    values: &BTreeMap<String, Vec<f32>>,
    model: &Path,
    head: &Head,
    pad: Option<u32>,
) -> Result<()> {
    let (mut tensors, mut head_init): (Vec<OutTensor>, Vec<OutTensor>) = Default::default();
    for (parameter, part) in adaptation.parameters.iter().zip(&adaptation.modes) {
        let (name, all);
        let set: &[u32] = match part {
            TrainMode::Frozen => &[],
            TrainMode::Sparse(set) => &set.indices,
            TrainMode::Dense if parameter.name == HEAD => {
                all = (0..parameter.numel() as u32).collect::<Vec<u32>>();
                &all
            }
            _ => {
                return Err(Error::Usage(format!(
                    "{} is changed as a whole or through added tensors, but sparse deltas hold single elements",
                    parameter.name
                )));
            }
        };
        name = if parameter.name == HEAD { HEAD.to_owned() } else { format!("delta.{}", parameter.name) };
        let deltas = values.get(&name).map(Vec::as_slice).unwrap_or_default();
        let bytes: Vec<u8> =
            set.iter().flat_map(|&i| coordinates(i, &parameter.shape)).flat_map(i32::to_le_bytes).collect();
        tensors.push(OutTensor {
            name: format!("indices.{}", parameter.name),
            dtype: Dtype::I32,
            shape: vec![set.len(), parameter.shape.len()],
            bytes: Cow::Owned(bytes),
        });
        tensors.push(OutTensor {
            name: format!("deltas.{}", parameter.name),
            dtype: Dtype::F32,
            shape: vec![set.len()],
            bytes: Cow::Borrowed(bytemuck::cast_slice(deltas)),
        });
        if parameter.name == HEAD {
            head_init.push(OutTensor {
                name: "head".into(),
                dtype: Dtype::F32,
                shape: parameter.shape.clone(),
                bytes: Cow::Owned(vec![0; 4 * set.len()]),
            });
        }
    }
    files::create_dirs(dir).map_err(Error::io(dir))?;
    if !head_init.is_empty() {
        save(&dir.join(HEAD_INIT), &head_init, &BTreeMap::new())?;
    }
    save(&dir.join(VALUES), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    let mut config = model_dir::model_config(model, head, pad, None)?;
    config.insert(BASE.into(), model.display().to_string().into());
    model_dir::write_json(&dir.join("config.json"), &config)
}

fn coordinates(flat: u32, shape: &[usize]) -> Vec<i32> {
    match shape {
        &[_, columns] => vec![(flat as usize / columns) as i32, (flat as usize % columns) as i32],
        _ => vec![flat as i32],
    }
}
