//! One forward (and backward) pass on a given batch, for comparison with other implementations.

use crate::job::PrecisionChoice;
use crate::method::{Adaptation, AdaptedLayers};
use crate::model::forward::{self, Inputs, Layers};
use crate::model::{Decoder, HeadKind, WeightSource, check_weights};
use crate::train::graphs::names;
use crate::train::{MemoryKind, Tensors};
use crate::weights::{Dtype, OutTensor, TensorFile, Weights, save};
use crate::{Error, Result, decoder};
use sparta_graph::ops::{CrossEntropy, Fill, IGNORED, SelectRows, Store, step as step_input};
use sparta_graph::{Backend, DType, GradRequest, Graph, Value, gradients};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InspectTask {
    Classification,
    CausalLm,
}

#[derive(Clone, Debug)]
pub struct InspectRequest {
    pub model: PathBuf,
    /// safetensors with `input_ids` `[B, T]`, and optionally `attention_mask` `[B, T]`, `labels` `[B]` or `lm_labels`
    /// `[B, T]` (-100: no target).
    pub batch: PathBuf,
    pub task: InspectTask,
    /// Also the gradient of every parameter; needs labels.
    pub grads: bool,
    pub precision: PrecisionChoice,
    pub out: PathBuf,
}

/// Writes `logits` (`[B, classes]`, or `[B, T, vocab]`), `last_hidden_state` `[B, T, hidden]` (after the final norm),
/// `loss` where the batch has labels, and `grad.<name>` if asked for; all f32, zeros in padded places. Returns the loss.
///
/// The pooled row is the last token whose id is not the pad id, as in transformers; the causal loss shifts the labels.
/// Weights stay in their type on the device.
pub fn inspect_forward(request: &InspectRequest, device: Box<dyn Backend>) -> Result<Option<f64>> {
    let decoder = decoder::open(&request.model)?;
    let weights = Weights::open(&request.model)?;
    let head = match request.task {
        InspectTask::CausalLm => HeadKind::CausalLm,
        InspectTask::Classification => HeadKind::Classification { classes: decoder.labels.len() },
    };
    let parameters = check_weights(&decoder, &weights, head)?;
    if let (InspectTask::Classification, None) = (request.task, weights.get("score.weight")) {
        return Err(Error::Weights(format!(
            "{}: the checkpoint has no classification head `score.weight`; use --task lm",
            request.model.display()
        )));
    }
    let batch = PaddedBatch::read(&request.batch, request.task, &decoder)?;
    if request.grads && batch.labels.is_none() {
        let wanted = if request.task == InspectTask::CausalLm { "lm_labels" } else { "labels" };
        return Err(Error::Data(format!("{}: --grads needs `{wanted}`", request.batch.display())));
    }
    let info = device.info();
    let precision = request.precision.choose(&parameters, &info)?;
    let mut adaptation = Adaptation::none(parameters);
    adaptation.precision = precision.precision;
    let (graph, outputs) = build(&decoder, &adaptation, head, &batch, request.grads)?;
    let plan = info.plan(&graph);
    let mut tensors = Tensors::new(device);
    load(&mut tensors, &weights, &decoder, &adaptation, &batch, &outputs)?;
    tensors.alloc_arena(plan.arena_buffers())?;
    let id = tensors.prepare(&plan)?;
    tensors.run(id)?;
    write(request, &decoder, &batch, &mut tensors, outputs)
}

/// A tensor that the pass leaves for the host.
struct Output {
    name: String,
    shape: Vec<usize>,
}

fn build(
    decoder: &Decoder,
    adaptation: &Adaptation,
    head: HeadKind,
    batch: &PaddedBatch,
    grads: bool,
) -> Result<(Graph, Vec<Output>)> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let mut layers = AdaptedLayers::new(adaptation, None);
    let rows = batch.tokens.len();
    let inputs = Inputs {
        tokens: g.external(names::TOKENS, DType::U32, [rows]),
        spans: g.external(names::SPANS, DType::U32, [rows, 2]),
        rope: g.external(names::ROPE, DType::F32, [batch.columns, decoder.head_dim]),
        rows: None,
        dropout: None,
    };
    let hidden = forward::hidden_states(decoder, g, &mut layers, &inputs)?;
    let logits = match head {
        HeadKind::Classification { .. } => {
            let pooled_rows = g.external(names::ROWS, DType::U32, [batch.pooled.len()]);
            let pooled = g.one(SelectRows {}, &[hidden, pooled_rows])?;
            forward::class_logits(g, &mut layers, pooled)?
        }
        HeadKind::CausalLm => forward::vocabulary_logits(decoder, g, &mut layers, hidden)?,
    };
    let mut results = vec![("last_hidden_state".to_owned(), hidden), ("logits".to_owned(), logits)];
    if let Some(labels) = &batch.labels {
        let labels = g.external(names::LABELS, DType::U32, [labels.len()]);
        let step = g.external(names::STEP, DType::F32, [step_input::LEN]);
        let loss = g.one(CrossEntropy::default(), &[logits, labels, step])?;
        results.push(("loss".to_owned(), loss));
        if grads {
            let one = g.one(Fill { value: 1.0, shape: vec![1] }, &[])?;
            let mut requests: Vec<(Value, GradRequest)> = Vec::new();
            for parameter in &adaptation.parameters {
                requests.push((layers.tensor(g, &parameter.name)?, GradRequest::Dense));
            }
            let values = gradients(g, &[(loss, one)], &requests)?;
            let named = adaptation.parameters.iter().zip(values);
            results.extend(named.map(|(p, v)| (format!("grad.{}", p.name), v)));
        }
    }
    let mut outputs = Vec::new();
    for (name, value) in results {
        let shape = g.shape(value)?.to_vec();
        let destination = g.external(format!("out.{name}"), DType::F32, shape.as_slice());
        g.apply(Store {}.into(), &[destination, value])?;
        outputs.push(Output { name, shape });
    }
    Ok((graph, outputs))
}

fn load(
    tensors: &mut Tensors,
    weights: &Weights,
    decoder: &Decoder,
    adaptation: &Adaptation,
    batch: &PaddedBatch,
    outputs: &[Output],
) -> Result<()> {
    for parameter in &adaptation.parameters {
        let view = weights.get_finite(&parameter.name)?;
        tensors.alloc(&parameter.name, view.dtype, parameter.numel() as usize, MemoryKind::Weights)?;
        tensors.write(&parameter.name, view.bytes)?;
    }
    let mut u32s = |name: &str, values: &[u32]| -> Result<()> {
        tensors.alloc(name, DType::U32, values.len(), MemoryKind::Buffers)?;
        tensors.write_u32(name, values)
    };
    u32s(names::TOKENS, &batch.tokens)?;
    u32s(names::SPANS, &batch.spans)?;
    u32s(names::ROWS, &batch.pooled)?;
    let mut step = [0f32; step_input::LEN];
    if let Some(labels) = &batch.labels {
        u32s(names::LABELS, labels)?;
        step[step_input::LOSS_WEIGHT] = 1.0 / labels.iter().filter(|&&l| l != IGNORED).count() as f32;
    }
    let table = decoder.rope.table(decoder.head_dim, batch.columns);
    for (name, values) in [(names::STEP, &step[..]), (names::ROPE, &table[..])] {
        tensors.alloc(name, DType::F32, values.len(), MemoryKind::Buffers)?;
        tensors.write_f32(name, values)?;
    }
    for output in outputs {
        let len = output.shape.iter().product();
        tensors.alloc(&format!("out.{}", output.name), DType::F32, len, MemoryKind::Buffers)?;
    }
    Ok(())
}

fn write(
    request: &InspectRequest,
    decoder: &Decoder,
    batch: &PaddedBatch,
    tensors: &mut Tensors,
    outputs: Vec<Output>,
) -> Result<Option<f64>> {
    let mut loss = None;
    let mut files = Vec::new();
    for Output { name, shape } in outputs {
        let values = tensors.read_f32(&format!("out.{name}"), shape.iter().product())?;
        let per_row = name == "last_hidden_state" || (name == "logits" && request.task == InspectTask::CausalLm);
        let (shape, values) = match name.as_str() {
            "loss" => {
                loss = values.first().map(|&x| f64::from(x));
                (vec![], values)
            }
            _ if per_row => batch.unpack(&values, shape[1]),
            _ => (shape, values),
        };
        let bytes = Cow::Owned(bytemuck::cast_slice(&values).to_vec());
        files.push(OutTensor { name, dtype: Dtype::F32, shape, bytes });
    }
    let metadata = BTreeMap::from([("family".to_owned(), decoder.family.model_type().to_owned())]);
    save(&request.out, &files, &metadata)?;
    Ok(loss)
}

/// A padded batch from a file, as segments of packed rows.
struct PaddedBatch {
    columns: usize,
    /// Place `[b, t]` of each packed row in the padded batch, flat.
    places: Vec<usize>,
    batch: usize,
    tokens: Vec<u32>,
    spans: Vec<u32>,
    pooled: Vec<u32>,
    labels: Option<Vec<u32>>,
}

impl PaddedBatch {
    fn read(path: &std::path::Path, task: InspectTask, decoder: &Decoder) -> Result<PaddedBatch> {
        let file = TensorFile::open(path)?;
        let bad = |what: String| Error::Data(format!("{}: {what}", path.display()));
        let (shape, ids) = file.integers("input_ids")?;
        let [batch, columns] = shape[..] else {
            return Err(bad(format!("`input_ids` must have shape [batch, tokens], got {shape:?}")));
        };
        if ids.is_empty() {
            return Err(bad("`input_ids` is empty".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id < 0 || id >= decoder.vocab_size as i64) {
            return Err(bad(format!("`input_ids` has the token {id}, the vocabulary has {}", decoder.vocab_size)));
        }
        let mask = match file.get("attention_mask") {
            Some(_) => file.integers("attention_mask")?,
            None => (shape.clone(), vec![1; ids.len()]),
        };
        if mask.0 != shape {
            return Err(bad(format!("`attention_mask` has shape {:?}, `input_ids` {shape:?}", mask.0)));
        }
        let lm_labels = match (task, file.get("lm_labels")) {
            (InspectTask::CausalLm, Some(_)) => Some(file.integers("lm_labels")?),
            _ => None,
        };
        if let Some((got, _)) = lm_labels.as_ref().filter(|(got, _)| *got != shape) {
            return Err(bad(format!("`lm_labels` has shape {got:?}, `input_ids` {shape:?}")));
        }
        let mut out = PaddedBatch {
            columns,
            places: vec![],
            batch,
            tokens: vec![],
            spans: vec![],
            pooled: vec![],
            labels: lm_labels.is_some().then(Vec::new),
        };
        for row in 0..batch {
            let range = row * columns..(row + 1) * columns;
            let real = segment(&mask.1[range.clone()])
                .ok_or_else(|| bad(format!("`attention_mask` of row {row} is not one run of ones among zeros")))?;
            let real = range.start + real.start..range.start + real.end;
            out.push(&ids, real, range.end, decoder.pad_token_id, lm_labels.as_ref().map(|(_, l)| &l[..]));
        }
        if task == InspectTask::Classification && file.get("labels").is_some() {
            let (shape, labels) = file.integers("labels")?;
            let classes = decoder.labels.len() as i64;
            if shape != [batch] || labels.iter().any(|&l| l < 0 || l >= classes) {
                return Err(bad(format!("`labels` must be {batch} classes below {classes}, got {labels:?}")));
            }
            out.labels = Some(labels.into_iter().map(|l| l as u32).collect());
        }
        if out.labels.as_ref().is_some_and(|labels| labels.iter().all(|&l| l == IGNORED)) {
            return Err(bad("`lm_labels` has no target: all are -100, masked, or first in their row".into()));
        }
        let vocab = decoder.vocab_size;
        if let Some(l) = out.labels.iter().flatten().find(|&&l| l != IGNORED && l as usize >= vocab) {
            return Err(bad(format!("`lm_labels` has the token {l}, the vocabulary has {vocab}")));
        }
        Ok(out)
    }

    /// Appends the real tokens of one row; `row_end` is the end of its padded row.
    fn push(
        &mut self,
        ids: &[i64],
        real: std::ops::Range<usize>,
        row_end: usize,
        pad: Option<u32>,
        lm_labels: Option<&[i64]>,
    ) {
        let start = self.tokens.len() as u32;
        let end = start + real.len() as u32;
        let last = real.clone().rev().find(|&i| Some(ids[i] as u32) != pad).unwrap_or(real.start);
        self.pooled.push(start + (last - real.start) as u32);
        for place in real {
            self.places.push(place);
            self.tokens.push(ids[place] as u32);
            self.spans.extend([start, end]);
            if let (Some(labels), Some(all)) = (&mut self.labels, lm_labels) {
                let next = if place + 1 < row_end { all[place + 1] } else { -100 };
                labels.push(u32::try_from(next).unwrap_or(IGNORED));
            }
        }
    }

    /// Packed rows of `width` at their padded places, zeros elsewhere: `[batch, columns, width]`.
    fn unpack(&self, packed: &[f32], width: usize) -> (Vec<usize>, Vec<f32>) {
        let mut out = vec![0.0; self.batch * self.columns * width];
        for (row, &place) in packed.chunks(width).zip(&self.places) {
            out[place * width..(place + 1) * width].copy_from_slice(row);
        }
        (vec![self.batch, self.columns, width], out)
    }
}

/// The one run of ones in a mask row.
fn segment(mask: &[i64]) -> Option<std::ops::Range<usize>> {
    let start = mask.iter().position(|&m| m == 1)?;
    let len = mask[start..].iter().take_while(|&&m| m == 1).count();
    let rest = mask[..start].iter().chain(&mask[start + len..]);
    rest.into_iter().all(|&m| m == 0).then_some(start..start + len)
}
