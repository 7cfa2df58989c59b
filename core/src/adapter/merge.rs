//! Merging: the full model that computes what the base model computes with its adapter.

use super::model_dir::{self, is_gguf};
use super::verify::{SAMPLE_LENGTH, check_merged, examples, sample_texts};
use super::{AppliedAdapter, Head, gguf_model};
use crate::job::MergeCheck;
use crate::method::{AdaptedLayers, IndexSet, TrainMode};
use crate::model::{HEAD, Storage, TensorView, from_f32, to_f32};
use crate::train::{MemoryKind, Session};
use crate::weights::{TensorSpec, Weights, safetensors_dtype};
use crate::{Error, Result, decoder};
use serde::Serialize;
use sparta_graph::blocks::encode_q8_0;
use sparta_graph::ops::Store;
use sparta_graph::{Backend, Blocks, DType, Graph};
use sparta_plugin::method::{Parameter, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The type of merged weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeDtype {
    /// Each tensor keeps the base model's type; a new head takes the embedding's.
    Keep,
    To(DType),
    /// GGUF's 8-bit blocks; tensors that do not divide into blocks are f16.
    Q8_0,
    /// That of the base model, blocks included: a changed element becomes the nearest value that the scales of its
    /// block allow.
    Own,
}

impl MergeDtype {
    /// The type of one parameter.
    pub fn of(self, parameters: &[Parameter], position: usize) -> DType {
        let embedding = || parameters.iter().find(|p| p.role == Role::Embedding);
        match (self, &parameters[position]) {
            (MergeDtype::To(dtype), _) => dtype,
            (MergeDtype::Q8_0, _) => DType::F32,
            (MergeDtype::Keep | MergeDtype::Own, p) if p.role == Role::Head => embedding().map_or(p.dtype, |e| e.dtype),
            (MergeDtype::Keep | MergeDtype::Own, p) => p.dtype,
        }
    }
}

#[derive(Clone, Debug)]
pub struct MergeRequest {
    pub out: PathBuf,
    pub dtype: MergeDtype,
    /// The most bytes of a weight file; a larger tensor has its own.
    pub shard_bytes: u64,
}

/// What [`merge`] wrote.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    pub out: PathBuf,
    pub files: usize,
    pub bytes: u64,
    pub check: MergeCheck,
    /// What other programs do not support in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Plugins other than those that the run was made with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_plugins: Vec<String>,
}

/// Writes the merged model in the Hugging Face layout, or as a GGUF file if `out` ends with `.gguf`, one tensor at a
/// time. Reads it back, and compares its logits with the adapter's on fixed token sequences; publishes it only if they
/// agree.
///
/// Errors: `out` already exists; an adapter with several heads; logits that differ by more than
/// [`MergeCheck::bound`].
pub fn merge(applied: &AppliedAdapter, request: &MergeRequest, device: Box<dyn Backend>) -> Result<Merged> {
    let [head] = &applied.adapter.heads[..] else {
        return Err(Error::Usage(format!(
            "{} has {} heads; a model in the Hugging Face layout has one: merge the adapters of one task",
            applied.adapter.dir.display(),
            applied.adapter.heads.len()
        )));
    };
    let longest = SAMPLE_LENGTH.min(applied.decoder.max_position_embeddings);
    let (objective, pad) = (&*applied.objective, applied.pad()?);
    let texts = sample_texts(applied.decoder.vocab_size, longest, pad);
    let examples = examples(objective, &texts, pad);
    let budget = texts.iter().map(Vec::len).sum();
    let mut session = applied.session(device, budget, longest)?;

    let parameters = applied.adaptation.parameters.clone();
    let written = model_dir::Output::create(&request.out)?;
    let (files, bytes) = if is_gguf(&request.out) {
        gguf_model::write(applied, &mut session, (head, pad), request.dtype, &written.path())?
    } else {
        in_layout(applied, &mut session, (head, pad), request, &written)?
    };

    let place = written.path();
    let stored = Weights::open(&place)?;
    // Like any reader of the written model, with the padding token that it states.
    let stated = decoder::open(&place)?.pad_token_id.filter(|_| objective.pools());
    let read = self::examples(objective, &texts, stated);
    let mut quantized = false;
    let check = check_merged(&mut session, [&examples, &read], budget, &stored, |session, position| {
        let name = &parameters[position].name;
        let view = stored.get(name).ok_or_else(|| Error::Weights(format!("{name} was not written")))?;
        if let Storage::Blocks(blocks) = view.format() {
            quantized = true;
            let base = applied.weights.get(name).filter(|_| request.dtype == MergeDtype::Own);
            let exact = merged_tensor(session, &applied.weights, &applied.adapter.values, position, DType::F32)?;
            check_blocks(blocks, &exact, base, &view)?;
        }
        Ok((view.dtype, view.bytes()))
    })?;
    let check = MergeCheck { quantized, ..check };
    if !check.agrees() {
        return Err(Error::Weights(format!("nothing was written to {}: {check}", request.out.display())));
    }
    drop(stored);
    written.finish()?;
    let other_plugins = applied.recorded.accepted.clone();
    let note = is_gguf(&request.out).then(|| gguf_model::note(applied)).flatten();
    Ok(Merged { out: request.out.clone(), files, bytes, check, note, other_plugins })
}

/// Errors: a weight does not read back as the merged one rounded to blocks, to those of `base` if there is one.
fn check_blocks(blocks: Blocks, exact: &[u8], base: Option<TensorView>, read: &TensorView) -> Result<()> {
    let exact: Vec<f32> = exact.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let mut expected = vec![0.0; exact.len()];
    let rounded = match base {
        Some(base) => base.changed_to(&exact).unwrap_or_default(),
        None => encode_q8_0(&exact),
    };
    blocks.decode(&rounded, &mut expected);
    match read.to_f32().is_some_and(|read| read == expected) {
        true => Ok(()),
        false => Err(Error::Weights("a weight does not read back as written; the disk may be damaged".into())),
    }
}

/// Writes a directory in the Hugging Face layout; returns the number of files of weights and the bytes of all tensors.
///
/// Errors: a type that safetensors does not have.
fn in_layout(
    applied: &AppliedAdapter,
    session: &mut Session,
    (head, pad): (&Head, Option<u32>),
    request: &MergeRequest,
    written: &model_dir::Output,
) -> Result<(usize, u64)> {
    if matches!(request.dtype, MergeDtype::Q8_0 | MergeDtype::Own) {
        return Err(Error::Usage("q8_0 and own are types of GGUF files: use an --out that ends with .gguf".into()));
    }
    let parameters = &applied.adaptation.parameters;
    let names: BTreeMap<&str, usize> = parameters.iter().enumerate().map(|(i, p)| (&*p.name, i)).collect();
    let spec = |position: usize| TensorSpec {
        name: parameters[position].name.clone(),
        dtype: safetensors_dtype(request.dtype.of(parameters, position)),
        shape: parameters[position].shape.clone(),
    };
    let specs: Vec<TensorSpec> = (0..parameters.len()).map(spec).collect();
    written.describe(&applied.adapter.model, head, pad, request.dtype.of(parameters, 0))?;
    written.weights(&specs, request.shard_bytes, |spec| {
        let position = names.get(spec.name.as_str()).copied().unwrap_or_default();
        let dtype = request.dtype.of(parameters, position);
        merged_tensor(session, &applied.weights, &applied.adapter.values, position, dtype)
    })
}

/// One merged parameter as `dtype`: `w`, the trained values, the method's `merge`, or `round(w0 + delta)` in the base's
/// type as in training. With `residual`, it is rounded only once, to `dtype`.
pub fn merged_tensor<'a>(
    session: &mut Session,
    weights: &'a Weights,
    values: &'a BTreeMap<String, Vec<f32>>,
    position: usize,
    dtype: DType,
) -> Result<Cow<'a, [u8]>> {
    let name = session.setup().adaptation.parameters[position].name.clone();
    if let Some(merged) = merged_by_method(session, position)? {
        return convert(&name, &merged, dtype).map(Cow::Owned);
    }
    let adaptation = &session.setup().adaptation;
    let parameter = &adaptation.parameters[position];
    match &adaptation.modes[position] {
        TrainMode::Dense => convert(&name, find(values, &name)?, dtype).map(Cow::Owned),
        TrainMode::Frozen | TrainMode::Reparam(_) => match weights.get(&name) {
            Some(view) => recode(&name, view.dtype, view.bytes(), dtype),
            // A new head that was not trained.
            None => convert(&name, find(values, &name)?, dtype).map(Cow::Owned),
        },
        TrainMode::Sparse(set) => {
            let rounded = if adaptation.residual { Some(dtype) } else { None };
            let (stored, bytes) = with_deltas(weights, values, parameter, set, rounded)?;
            recode(&name, stored, bytes, dtype)
        }
    }
}

/// A parameter with the changes of its chosen elements: `round(w0 + delta)` in the type `rounded`, by default the
/// base's as in training. Returns that type, too.
pub fn with_deltas<'a>(
    weights: &'a Weights,
    values: &BTreeMap<String, Vec<f32>>,
    parameter: &Parameter,
    set: &IndexSet,
    rounded: Option<DType>,
) -> Result<(DType, Cow<'a, [u8]>)> {
    let name = &parameter.name;
    let view = weights.get(name).ok_or_else(|| missing(name))?;
    if set.indices.is_empty() {
        return Ok((view.dtype, view.bytes()));
    }
    let rounded = rounded.unwrap_or(view.dtype);
    let stored = view.bytes();
    let mut bytes = recode(name, view.dtype, stored.clone(), rounded)?.into_owned();
    let of = |dtype: DType, i: u32| i as usize * dtype.size()..(i as usize + 1) * dtype.size();
    for (&i, delta) in set.indices.iter().zip(find(values, &format!("delta.{name}"))?) {
        let w0 = to_f32(view.dtype, &stored[of(view.dtype, i)]).ok_or_else(|| missing(name))?;
        bytes[of(rounded, i)].copy_from_slice(&convert(name, &[w0[0] + delta], rounded)?);
    }
    Ok((rounded, Cow::Owned(bytes)))
}

pub fn find<'a>(values: &'a BTreeMap<String, Vec<f32>>, name: &str) -> Result<&'a [f32]> {
    values.get(name).map(Vec::as_slice).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::Weights(format!("{name} is missing"))
}

fn convert(name: &str, values: &[f32], dtype: DType) -> Result<Vec<u8>> {
    from_f32(dtype, values).ok_or_else(|| Error::Weights(format!("{name} cannot be stored as {dtype}")))
}

fn recode<'a>(name: &str, from: DType, bytes: Cow<'a, [u8]>, to: DType) -> Result<Cow<'a, [u8]>> {
    if from == to {
        return Ok(bytes);
    }
    let values = to_f32(from, &bytes).ok_or_else(|| Error::Weights(format!("{name} is stored as {from}")))?;
    convert(name, &values, to).map(Cow::Owned)
}

/// A parameter as the method merges it, f32 of its shape, computed by the method's graph on the device. `None`: it is
/// unchanged.
pub fn merged_by_method(session: &mut Session, position: usize) -> Result<Option<Vec<f32>>> {
    const RESULT: &str = "out.merged";
    let adaptation = &session.setup().adaptation;
    if !adaptation.method.mergeable() {
        return match adaptation.modes[position] {
            TrainMode::Reparam(_) => Err(Error::Method(format!(
                "method `{}` says that it cannot be merged; use the adapter with its base model",
                adaptation.info.name
            ))),
            _ => Ok(None),
        };
    }
    let shape = adaptation.parameters[position].shape.clone();
    let mut graph = Graph::new();
    graph.set_label(format!("merge {}", adaptation.parameters[position].name));
    let Some(merged) = AdaptedLayers::new(adaptation, None).merged(&mut graph, position)? else { return Ok(None) };
    let result = graph.external(RESULT, DType::F32, shape.as_slice());
    graph.apply(Store {}.into(), &[result, merged])?;
    session.reserve_arena(&graph)?;
    let len = shape.iter().product();
    session.tensors().alloc(RESULT, DType::F32, len, MemoryKind::Buffers)?;
    let outcome = session.run_graph(&graph).and_then(|()| session.tensors().read_f32(RESULT, len));
    session.tensors().free(RESULT);
    outcome.map(Some)
}

/// Whether a parameter is the head, which tasks do not share.
pub fn is_head(parameter: &Parameter) -> bool {
    parameter.name == HEAD
}
