//! Plans the memory of fine-tuning a model from its `config.json` alone.

use super::blocks::{blocks_of, expect_blocks, quantized_note};
use super::prepare::{default_head_std, expected_parameters};
use super::score::scorings;
use crate::job::{
    ChosenPrecision, Needs, PaperMemory, PrecisionChoice, ScoringPlan, TrainablePlan, body_size, thousands,
};
use crate::method::Adaptation;
use crate::method::options::{self, Given};
use crate::model::{Decoder, Quantize};
use crate::plugin::PluginSet;
use crate::train::{self, Demand, HeadInit, MICRO_BATCH_TOKENS, MemoryKind, Objective, Optimization, Recompute, Setup};
use crate::weights::Weights;
use crate::{Error, Result, decoder, files, gguf};
use serde::Serialize;
use sparta_graph::{DType, DeviceInfo, memory_size};
use sparta_plugin::method::{Options, Parameter};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that the memory of a run depends on.
#[derive(Clone, Debug)]
pub struct MemoryRequest {
    /// A model directory, or a `config.json`.
    pub model: PathBuf,
    pub method: String,
    pub method_options: Options,
    pub objective: Arc<dyn Objective>,
    /// Examples per optimizer step.
    pub batch_size: usize,
    /// `None`: as many as fit, up to [`MICRO_BATCH_TOKENS`].
    pub micro_batch_tokens: Option<usize>,
    /// Length of the longest example in tokens; `None`: a batch fills one micro-batch.
    pub max_length: Option<usize>,
    pub dropout: f64,
    pub recompute: Recompute,
    pub precision: PrecisionChoice,
    /// The option `--residual`.
    pub residual: bool,
    /// As the option `--quantize`.
    pub quantize: Option<Quantize>,
    pub optimization: Optimization,
}

/// The memory of a run, from the architecture alone.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    pub model: PathBuf,
    pub family: String,
    /// The type of the weights according to `config.json`, by default f32.
    pub dtype: DType,
    /// Scalars of the model, the classification head included.
    pub parameters: u64,
    pub method: String,
    pub options: Options,
    /// Expected numbers, for sparse methods.
    pub trainable: TrainablePlan,
    /// Tokens of a micro-batch.
    pub rows: usize,
    pub batch_size: usize,
    pub micro_batches: bool,
    pub recompute: bool,
    pub device: DeviceInfo,
    pub precision: ChosenPrecision,
    /// Bytes on the device by kind.
    pub memory: BTreeMap<MemoryKind, u64>,
    pub needs: Needs,
    /// What is quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantized: Option<String>,
    /// The scores computed before training, which choose what is trained.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scoring: Vec<ScoringPlan>,
    pub paper: PaperMemory,
}

/// Plans the memory of fine-tuning a model, without its weights, tokenizer or data. Nothing is drawn or allocated;
/// index sets count with their expected sizes.
///
/// Errors: an unreadable or unsupported configuration; whatever the method refuses; an optimizer group without a
/// tensor.
pub fn plan(request: &MemoryRequest, plugins: &PluginSet, device: &DeviceInfo) -> Result<MemoryPlan> {
    let decoder = match decoder::is_model(&request.model) || files::is_dir(&request.model) {
        true => decoder::open(&request.model)?,
        false => decoder::read(&request.model)?,
    };
    let method = plugins.method(&request.method)?;
    let given = request.method_options.iter().map(|(name, value)| (name.clone(), Given::Typed(value.clone())));
    let options = options::check(&format!("method {}", request.method), &method.info().options, &given.collect())?;
    let objective = request.objective.clone();
    let parameters = expected_parameters(&decoder, &*objective);
    let stored = gguf::locate(&request.model)?.map(|_| Weights::open(&request.model)).transpose()?;
    let blocks = |parameter: &Parameter| blocks_of(parameter, request.quantize, stored.as_ref());
    let precision = request.precision.choose(&parameters, blocks, device)?;
    let mut adaptation = Adaptation::expected(method.clone(), parameters, options)?;
    adaptation.precision = precision.precision;
    expect_blocks(&mut adaptation, request.quantize, stored.as_ref());
    adaptation.check_trainable()?;
    if request.residual {
        adaptation.add_residual()?;
    }
    request.optimization.group_plans(&adaptation.trained())?;
    let demand = demand(request, &decoder, &adaptation)?;
    let mut setup = Setup {
        head_init: HeadInit::Normal { std: default_head_std(decoder.hidden_size) },
        decoder,
        adaptation,
        objective,
        optimization: request.optimization.clone(),
        dropout: request.dropout as f32,
        recompute: false,
        seed: 0,
        limits: demand.limits(MICRO_BATCH_TOKENS),
    };
    let fit = train::fit(&mut setup, &demand, request.micro_batch_tokens, request.recompute, device)?;
    let scorings = scorings(&setup, &demand, device)?;
    let trainable = TrainablePlan::new(&setup.adaptation);
    let body = body_size(&setup.adaptation);
    Ok(MemoryPlan {
        model: request.model.clone(),
        family: setup.decoder.family.model_type().to_owned(),
        dtype: setup.decoder.dtype.unwrap_or(DType::F32),
        parameters: setup.adaptation.parameters.iter().map(|p| p.numel()).sum(),
        method: setup.adaptation.info.name.clone(),
        options: setup.adaptation.options.clone(),
        paper: PaperMemory::new(body, trainable.body),
        trainable,
        rows: setup.limits.train.map_or(0, |size| size.rows),
        batch_size: request.batch_size,
        micro_batches: setup.limits.micro_batches,
        recompute: setup.recompute,
        device: device.clone(),
        precision,
        needs: Needs::new(&fit, request.micro_batch_tokens, request.recompute),
        memory: fit.planned.memory,
        quantized: quantized_note(&setup.adaptation),
        scoring: scorings.into_iter().map(|scoring| scoring.plan).collect(),
    })
}

/// The demand of batches whose examples are all as long as the longest one.
fn demand(request: &MemoryRequest, decoder: &Decoder, adaptation: &Adaptation) -> Result<Demand> {
    let &MemoryRequest { batch_size: batch, micro_batch_tokens, dropout, .. } = request;
    let tokens = micro_batch_tokens.unwrap_or(MICRO_BATCH_TOKENS);
    if batch == 0 || tokens == 0 {
        return Err(Error::Usage("the batch size and the tokens of a micro-batch must be at least 1".into()));
    }
    let longest = request.max_length.unwrap_or(tokens / batch).min(decoder.max_position_embeddings).max(1);
    Ok(Demand {
        batch,
        largest_batch: request.max_length.map_or(tokens, |_| batch.saturating_mul(longest)),
        longest_train: longest,
        longest,
        head_features: request.objective.pools()
            && adaptation.head_only()
            && adaptation.steps.is_none()
            && dropout == 0.0,
        cache: None,
        split: false,
        shared: false,
    })
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<String> = self.options.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let (family, parameters) = (&self.family, thousands(self.parameters));
        writeln!(f, "model      {} ({family}, {parameters} parameters, {})", self.model.display(), self.dtype)?;
        writeln!(f, "method     {}  {}", self.method, options.join(", "))?;
        let TrainablePlan { body, head, density, .. } = self.trainable;
        let (body, percent) = (thousands(body), 100.0 * density);
        writeln!(f, "trainable  {body} in the body ({percent:.4} % of the model) + {} in the head", thousands(head))?;
        let split = if self.micro_batches { " and more micro-batches for the rest" } else { "" };
        writeln!(f, "batch      {} tokens of {} examples{split}", thousands(self.rows as u64), self.batch_size)?;
        writeln!(f, "device     {} ({})", self.device.name, self.device.id)?;
        writeln!(f, "precision  {}", self.precision)?;
        let total: u64 = self.memory.values().sum();
        let recompute = if self.recompute { ", with activation checkpointing" } else { "" };
        let per_parameter = |bytes: u64| 8.0 * bytes as f64 / self.parameters as f64;
        let (size, bits) = (memory_size(total), per_parameter(total));
        writeln!(f, "memory     {size} on the device, {bits:.2} bits per parameter{recompute}")?;
        for kind in MemoryKind::ALL {
            let Some(&bytes) = self.memory.get(&kind).filter(|&&bytes| bytes > 0) else { continue };
            writeln!(f, "  {:<24}{:>14}{:>8.2}", kind.title(), memory_size(bytes), per_parameter(bytes))?;
        }
        write!(f, "{}", self.needs)?;
        for scoring in &self.scoring {
            writeln!(f, "scoring    {scoring}")?;
        }
        if let Some(note) = &self.quantized {
            writeln!(f, "note       {note}")?;
        }
        write!(f, "{}", self.paper)
    }
}

impl MemoryPlan {
    /// Errors: the run, or what is computed before it, does not fit the device, with three ways to make it fit.
    pub fn check_fit(&self) -> Result<()> {
        self.scoring.iter().try_for_each(|scoring| scoring.check_fit(&self.device))?;
        self.needs.check(&self.memory, &self.device)
    }
}
