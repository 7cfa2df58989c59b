//! One forward (and backward) pass on a given batch, for comparison with other implementations.

use crate::job::PrecisionChoice;
use crate::method::Adaptation;
use crate::model::{Decoder, PROBLEM_TYPES, check_weights};
use crate::train::objective::{Classification, NextToken};
use crate::train::{Batch, HeadInit, Labels, Objective, Optimization, Session, SessionLimits, Setup, Size, layout};
use crate::weights::{Dtype, OutTensor, TensorFile, Weights, save};
use crate::{Error, Result, decoder};
use sparta_graph::Backend;
use sparta_graph::ops::IGNORED;
use sparta_plugin::method::Parameter;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Also write the gradient of every parameter; needs labels.
    pub grads: bool,
    pub precision: PrecisionChoice,
    pub out: PathBuf,
}

/// Writes `logits` (`[B, classes]`, or `[B, T, vocab]`), `last_hidden_state` `[B, T, hidden]` (after the final norm),
/// `loss` if the batch has labels, and `grad.<name>` if requested; all f32, zeros at padding. Returns the loss.
///
/// The pooled row is the last token whose id is not the pad id, as in transformers; the causal loss shifts the labels.
/// The graphs are those of training and evaluation.
pub fn inspect_forward(request: &InspectRequest, device: Box<dyn Backend>) -> Result<Option<f64>> {
    let decoder = decoder::open(&request.model)?;
    let weights = Weights::open(&request.model)?;
    let objective: Arc<dyn Objective> = match request.task {
        InspectTask::CausalLm => Arc::new(NextToken {}),
        InspectTask::Classification => Arc::new(Classification { classes: decoder.labels.len() }),
    };
    let parameters = check_weights(&decoder, &weights, objective.head())?;
    if let (InspectTask::Classification, None) = (request.task, weights.get("score.weight")) {
        return Err(Error::Weights(format!(
            "{}: the checkpoint has no classification head `score.weight`; use --task lm",
            request.model.display()
        )));
    }
    let problem = decoder.problem_type.as_deref().unwrap_or(PROBLEM_TYPES[0]);
    if request.task == InspectTask::Classification && problem != PROBLEM_TYPES[0] {
        return Err(Error::Config(format!(
            "{}: `problem_type` is {problem}, but only the loss of {} is computed here",
            request.model.display(),
            PROBLEM_TYPES[0]
        )));
    }
    let batch = PaddedBatch::read(&request.batch, request.task, &decoder)?;
    if request.grads && batch.labels.is_none() {
        let wanted = if request.task == InspectTask::CausalLm { "lm_labels" } else { "labels" };
        return Err(Error::Data(format!("{}: --grads needs `{wanted}`", request.batch.display())));
    }
    let blocks = |parameter: &Parameter| weights.get(&parameter.name)?.blocks();
    let precision = request.precision.choose(&parameters, blocks, &device.info())?;
    let mut adaptation = if request.grads { Adaptation::whole(parameters) } else { Adaptation::none(parameters) };
    adaptation.precision = precision.precision;
    adaptation.keep_blocks(blocks);
    let size = Size { rows: batch.tokens.len(), examples: batch.batch };
    let setup = Setup {
        decoder,
        adaptation,
        objective,
        optimization: Optimization::default(),
        dropout: 0.0,
        recompute: false,
        seed: 0,
        head_init: HeadInit::Normal { std: 0.0 },
        limits: SessionLimits {
            train: request.grads.then_some(size),
            micro_batches: request.grads,
            shared: false,
            evaluate: size,
            positions: batch.columns,
            head_features: false,
            batch: size.examples,
            cache: None,
        },
    };
    let arena = layout::plan_memory(&setup, &device.info())?.arena;
    let mut session = Session::open(device, &weights, setup, &arena)?;
    let (outputs, loss) = compute(request, &batch, &mut session)?;
    let family = session.setup().decoder.family.model_type().to_owned();
    save(&request.out, &outputs, &BTreeMap::from([("family".to_owned(), family)]))?;
    Ok(loss)
}

/// The tensors to write, and the mean loss if the batch has labels.
fn compute(
    request: &InspectRequest,
    batch: &PaddedBatch,
    session: &mut Session,
) -> Result<(Vec<OutTensor<'static>>, Option<f64>)> {
    let packed = batch.packed();
    let (width, vocabulary) = (session.setup().decoder.hidden_size, session.setup().decoder.vocab_size);
    let rows = session.inspect(&packed)?;
    let (class_logits, loss) = session.evaluate(&packed)?;
    let (shape, logits) = match rows.logits {
        Some(logits) => batch.unpack(&logits, vocabulary),
        None => (vec![batch.batch, class_logits.len() / batch.batch], class_logits),
    };
    let mut outputs = vec![tensor("logits".into(), shape, &logits)];
    let (shape, hidden) = batch.unpack(&rows.hidden, width);
    outputs.push(tensor("last_hidden_state".into(), shape, &hidden));
    let loss = batch.labels.is_some().then(|| loss / packed.targets() as f64);
    outputs.extend(loss.map(|loss| tensor("loss".into(), vec![], &[loss as f32])));
    if request.grads {
        let mut gradients = session.gradients(&packed)?;
        for parameter in &session.setup().adaptation.parameters {
            let Some(gradient) = gradients.remove(&parameter.name) else { continue };
            outputs.push(tensor(format!("grad.{}", parameter.name), parameter.shape.clone(), &gradient));
        }
    }
    Ok((outputs, loss))
}

fn tensor(name: String, shape: Vec<usize>, values: &[f32]) -> OutTensor<'static> {
    OutTensor { name, dtype: Dtype::F32, shape, bytes: Cow::Owned(bytemuck::cast_slice(values).to_vec()) }
}

/// A padded batch from a file, as segments of packed rows.
struct PaddedBatch {
    /// Whether there is a label per row.
    lm: bool,
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
    /// The batch as in training, without padding rows.
    fn packed(&self) -> Batch {
        let labels = || vec![IGNORED; if self.lm { self.tokens.len() } else { self.batch }];
        Batch {
            tokens: self.tokens.clone(),
            spans: self.spans.clone(),
            rows: self.pooled.clone(),
            labels: Labels::Ids(self.labels.clone().unwrap_or_else(labels)),
            real_rows: self.tokens.len(),
            weight: 1.0,
        }
    }

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
            lm: task == InspectTask::CausalLm,
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

/// The only run of ones in a mask row.
fn segment(mask: &[i64]) -> Option<std::ops::Range<usize>> {
    let start = mask.iter().position(|&m| m == 1)?;
    let len = mask[start..].iter().take_while(|&&m| m == 1).count();
    let rest = mask[..start].iter().chain(&mask[start + len..]);
    rest.into_iter().all(|&m| m == 0).then_some(start..start + len)
}
