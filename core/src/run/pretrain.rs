//! Pre-training of small models: an ordinary run on text that starts from random weights and ends in a model.

use super::train::{OpenDevice, Start, run};
use crate::adapter::{AppliedAdapter, MergeDtype, MergeRequest, merge, write_tokenizer};
use crate::job::{Control, Observer, OptimizerOptions, PrecisionChoice, RunConfig, Stopped};
use crate::model::{Decoder, HeadKind, from_f32};
use crate::plugin::PluginSet;
use crate::report::RunData;
use crate::train::layout::initial;
use crate::train::{Metrics, Schedule};
use crate::weights::{OutTensor, atomic_write, safetensors_dtype, save};
use crate::{Error, Result, decoder, files};
use serde::Serialize;
use serde_json::Value;
use sparta_graph::DType;
use sparta_plugin::method::{Init, Parameter, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The options of pre-training.
#[derive(Clone, Debug)]
pub struct PretrainConfig {
    /// Directory with `config.json` and the tokenizer.
    pub model: PathBuf,
    /// Data of the task `text`.
    pub data: PathBuf,
    pub method: String,
    pub method_options: BTreeMap<String, Value>,
    pub epochs: usize,
    pub max_steps: Option<usize>,
    /// Tokens per step; documents are packed whole.
    pub batch_tokens: usize,
    /// Tokens per micro-batch; `None`: a step is one.
    pub micro_batch_tokens: Option<usize>,
    pub lr: f64,
    /// Share of the steps in which the learning rate rises; a cosine to 0 follows.
    pub warmup: f64,
    pub weight_decay: f64,
    pub optimizer: OptimizerOptions,
    /// Documents are truncated to this many tokens.
    pub max_length: usize,
    pub eval_interval: Option<usize>,
    pub checkpoint_interval: usize,
    pub seed: u64,
    pub precision: PrecisionChoice,
    /// Whether kernels are chosen by rules alone.
    pub no_autotune: bool,
    /// Type of the saved weights.
    pub dtype: DType,
    /// The run directory, with the initial weights in `start` and the trained model in `model`.
    pub out: PathBuf,
}

#[derive(Clone, Debug, Serialize)]
pub struct PretrainResult {
    pub stopped: Stopped,
    pub steps: usize,
    pub documents: usize,
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps, nats per token.
    pub loss: f64,
    /// On the held-out text.
    pub dev: Option<Metrics>,
    /// In the Hugging Face layout.
    pub model: PathBuf,
    pub out: PathBuf,
}

const WEIGHTS: &str = "model.safetensors";
/// The most bytes of a weight file.
const SHARD: u64 = 2_000_000_000;

/// Trains from random weights, and writes `config.json`, the tokenizer and the weights to `model` in the run directory.
///
/// Errors: those of [`run`] and [`merge`].
pub fn pretrain(
    config: &PretrainConfig,
    plugins: &PluginSet,
    open: OpenDevice,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<PretrainResult> {
    let (begin, model) = (config.out.join("start"), config.out.join("model"));
    write_start(&begin, config)?;
    let mut run_config = run_config(config, &begin)?;
    if start == Start::Resume {
        let RunConfig { plugins, earlier_plugins, earlier_lengths, .. } = RunConfig::of_run(&config.out)?;
        run_config = RunConfig { plugins, earlier_plugins, earlier_lengths, ..run_config };
    }
    let result = run(&run_config, plugins, open, start, observer)?;
    if files::is_dir(&model) {
        files::remove(&model).map_err(Error::io(&model))?;
    }
    let request = MergeRequest { out: model.clone(), dtype: MergeDtype::To(config.dtype), shard_bytes: SHARD };
    merge(&AppliedAdapter::open(&config.out, None, plugins)?, &request, open()?)?;
    let data = RunData::read(&config.out)?;
    let last = &data.steps[data.steps.len() - data.steps.len().div_ceil(10)..];
    let loss = last.iter().map(|step| step.loss).sum::<f64>() / last.len().max(1) as f64;
    let train = data.plan.data.train;
    Ok(PretrainResult {
        stopped: result.stopped,
        steps: result.steps,
        documents: train.examples,
        tokens: train.tokens,
        loss,
        dev: result.dev,
        model,
        out: config.out.clone(),
    })
}

fn run_config(config: &PretrainConfig, model: &Path) -> Result<RunConfig> {
    let defaults = RunConfig::of_options(&BTreeMap::new())?;
    Ok(RunConfig {
        model: model.to_owned(),
        task: "text".into(),
        data: config.data.clone(),
        method: config.method.clone(),
        method_options: config.method_options.clone(),
        batch_size: 1,
        batch_tokens: Some(config.batch_tokens),
        lr: Some(config.lr),
        schedule: Schedule::Cosine,
        warmup: config.warmup,
        weight_decay: config.weight_decay,
        optimizer: config.optimizer.clone(),
        seed: config.seed,
        eval_interval: config.eval_interval,
        max_length: Some(config.max_length),
        micro_batch_tokens: Some(config.micro_batch_tokens.unwrap_or(config.batch_tokens.max(config.max_length))),
        precision: config.precision,
        no_autotune: config.no_autotune,
        control: Control {
            epochs: config.epochs,
            max_steps: config.max_steps,
            checkpoint_interval: config.checkpoint_interval,
            answers: 0,
            mistakes: 0,
            ..defaults.control
        },
        out: config.out.clone(),
        ..defaults
    })
}

/// Makes a model directory with configuration, tokenizer and random weights drawn by the seed: normal matrices with the
/// configured `initializer_range`, identity norms and zero biases, as in transformers.
fn write_start(dir: &Path, config: &PretrainConfig) -> Result<()> {
    let decoder = decoder::open(&config.model)?;
    files::create_dirs(dir).map_err(Error::io(dir))?;
    let path = dir.join("config.json");
    let described = serde_json::to_vec_pretty(&decoder::config(&config.model)?);
    let described = described.map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
    atomic_write(&path, |file| file.write_all(&described).map_err(Error::io(&path)))?;
    write_tokenizer(&config.model, dir)?;
    let mut tensors = Vec::new();
    for parameter in decoder.parameters(HeadKind::CausalLm) {
        let bytes = from_f32(DType::F32, &first_values(&decoder, &parameter, config.seed));
        let bytes = bytes.ok_or_else(|| Error::Weights(format!("{} cannot be saved", parameter.name)))?;
        let Parameter { name, shape, .. } = parameter;
        tensors.push(OutTensor { name, dtype: safetensors_dtype(DType::F32), shape, bytes: Cow::Owned(bytes) });
    }
    save(&dir.join(WEIGHTS), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}

fn first_values(decoder: &Decoder, parameter: &Parameter, seed: u64) -> Vec<f32> {
    let neutral = if decoder.norm_plus_one { 0.0 } else { 1.0 };
    let std = f64::from(decoder.initializer_range);
    match parameter.role {
        Role::Norm => vec![neutral; parameter.numel() as usize],
        Role::Bias => vec![0.0; parameter.numel() as usize],
        _ => initial(seed, &parameter.name, &parameter.shape, Init::Normal { std }),
    }
}
