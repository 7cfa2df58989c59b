//! Pre-training of small models: an ordinary run on text that begins with random weights.

use super::train::{OpenDevice, Start, run};
use crate::job::{Control, Observer, OptimizerOptions, PrecisionChoice, RunConfig, Stopped, TextConfig};
use crate::model::{Decoder, HeadKind, from_f32, to_f32};
use crate::plugin::PluginSet;
use crate::report::RunData;
use crate::train::layout::initial;
use crate::train::{Metrics, Recompute, Schedule};
use crate::weights::{OutTensor, Weights, safetensors_dtype, save};
use crate::{Error, Result, decoder, files};
use serde::Serialize;
use sparta_graph::DType;
use sparta_plugin::method::{Init, Parameter, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What to train on what.
#[derive(Clone, Debug)]
pub struct PretrainConfig {
    /// Directory with `config.json` and the tokenizer.
    pub model: PathBuf,
    /// One document per line.
    pub text: PathBuf,
    /// Held-out text, one document per line: evaluated after each epoch, or every `eval_interval` steps.
    pub dev: Option<PathBuf>,
    pub epochs: usize,
    pub max_steps: Option<usize>,
    /// Tokens per step; documents are packed whole.
    pub batch_tokens: usize,
    /// Tokens per micro-batch; `None`: a step is one.
    pub micro_batch_tokens: Option<usize>,
    pub lr: f64,
    /// Share of the steps with a rising learning rate; a cosine to 0 follows.
    pub warmup: f64,
    pub weight_decay: f64,
    pub optimizer: OptimizerOptions,
    /// Documents are cut to so many tokens.
    pub max_length: usize,
    pub eval_interval: Option<usize>,
    pub checkpoint_interval: usize,
    pub seed: u64,
    pub precision: PrecisionChoice,
    /// Type of the saved weights.
    pub dtype: DType,
    /// Directory in the Hugging Face layout, made by this run; the run directory is `run` in it.
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
    pub out: PathBuf,
}

const MODEL: &str = "model.safetensors";

/// Trains all weights from a random start and writes `config.json`, the tokenizer and `model.safetensors` to `out`.
///
/// Errors: those of [`run`]; a directory that holds a model already, unless its run is resumed.
pub fn pretrain(
    config: &PretrainConfig,
    plugins: &PluginSet,
    open: OpenDevice,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<PretrainResult> {
    if start == Start::New && config.out.join(MODEL).exists() {
        return Err(Error::Usage(format!("{} holds a model already; give another --out", config.out.display())));
    }
    let directory = config.out.join("run");
    let begin = directory.join("start");
    write_start(&begin, config)?;
    let mut run_config = run_config(config, &begin, &directory);
    if start == Start::Resume {
        let RunConfig { plugins, earlier_plugins, earlier_lengths, .. } = RunConfig::of_run(&directory)?;
        run_config = RunConfig { plugins, earlier_plugins, earlier_lengths, ..run_config };
    }
    let result = run(&run_config, plugins, open, start, observer)?;
    let data = RunData::read(&directory)?;
    let last = &data.steps[data.steps.len() - data.steps.len().div_ceil(10)..];
    let loss = last.iter().map(|step| step.loss).sum::<f64>() / last.len().max(1) as f64;
    if result.stopped == Stopped::Completed {
        // They follow from the seed, should the run be made longer.
        fs::remove_dir_all(&begin).map_err(Error::io(&begin))?;
    }
    let train = data.plan.data.train;
    Ok(PretrainResult {
        stopped: result.stopped,
        steps: result.steps,
        documents: train.examples,
        tokens: train.tokens,
        loss,
        dev: result.dev,
        out: config.out.clone(),
    })
}

fn run_config(config: &PretrainConfig, model: &Path, out: &Path) -> RunConfig {
    RunConfig {
        model: model.to_owned(),
        task: "text".into(),
        data: config.text.clone(),
        text: Some(TextConfig { dev: config.dev.clone(), out: config.out.clone(), dtype: config.dtype }),
        method: "full".into(),
        method_options: BTreeMap::new(),
        batch_size: 1,
        batch_tokens: Some(config.batch_tokens),
        lr: Some(config.lr),
        schedule: Schedule::Cosine,
        warmup: config.warmup,
        weight_decay: config.weight_decay,
        optimizer: config.optimizer.clone(),
        max_grad_norm: Some(1.0),
        dropout: 0.0,
        seed: config.seed,
        eval_interval: config.eval_interval,
        patience: None,
        min_delta: 0.0,
        max_length: Some(config.max_length),
        max_train: None,
        max_dev: None,
        max_test: None,
        head_init_std: None,
        new_head: false,
        instruct: None,
        plugins: vec![],
        earlier_plugins: vec![],
        earlier_lengths: vec![],
        micro_batch_tokens: Some(config.micro_batch_tokens.unwrap_or(config.batch_tokens.max(config.max_length))),
        recompute: Recompute::Auto,
        precision: config.precision,
        control: Control {
            epochs: config.epochs,
            max_steps: config.max_steps,
            skip_nonfinite: false,
            checkpoint_interval: config.checkpoint_interval,
            keep_checkpoints: 2,
        },
        out: out.to_owned(),
    }
}

/// Makes a model directory with configuration, tokenizer and random weights: matrices normal with the configured
/// `initializer_range`, norms neutral, biases zero, as transformers initialises.
fn write_start(dir: &Path, config: &PretrainConfig) -> Result<()> {
    if dir.join(MODEL).is_file() {
        return Ok(());
    }
    let decoder = decoder::open(&config.model)?;
    copy_description(&config.model, dir)?;
    let parameters = decoder.parameters(HeadKind::CausalLm);
    let values = parameters.iter().map(|parameter| first_values(&decoder, parameter, config.seed));
    write_weights(dir, &parameters, DType::F32, values.map(Ok))
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

/// Writes a model with these trained weights, and those of `weights` where nothing was trained.
pub(super) fn save_trained(
    text: &TextConfig,
    model: &Path,
    weights: &Weights,
    parameters: &[Parameter],
    trained: &BTreeMap<String, Vec<f32>>,
) -> Result<()> {
    copy_description(model, &text.out)?;
    let values = parameters.iter().map(|parameter| {
        let name = &parameter.name;
        let base = || weights.get(name).and_then(|view| to_f32(view.dtype, view.bytes));
        let values = trained.get(name).cloned().or_else(base);
        values.ok_or_else(|| Error::Weights(format!("{name} is neither trained nor in {}", model.display())))
    });
    write_weights(&text.out, parameters, text.dtype, values)
}

/// Copies configuration and tokenizer of a model.
fn copy_description(from: &Path, to: &Path) -> Result<()> {
    files::create_dirs(to).map_err(Error::io(to))?;
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = from.join(name);
        if from.exists() {
            fs::copy(&from, to.join(name)).map_err(Error::io(from))?;
        }
    }
    Ok(())
}

fn write_weights(
    dir: &Path,
    parameters: &[Parameter],
    dtype: DType,
    values: impl Iterator<Item = Result<Vec<f32>>>,
) -> Result<()> {
    let mut tensors = Vec::new();
    for (parameter, values) in parameters.iter().zip(values) {
        let bytes = from_f32(dtype, &values?);
        let bytes = bytes.ok_or_else(|| Error::Weights(format!("{} cannot be saved as {dtype}", parameter.name)))?;
        let (name, shape) = (parameter.name.clone(), parameter.shape.clone());
        tensors.push(OutTensor { name, dtype: safetensors_dtype(dtype), shape, bytes: Cow::Owned(bytes) });
    }
    save(&dir.join(MODEL), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}
