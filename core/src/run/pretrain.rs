//! Causal-LM pre-training from scratch, for small models.

use crate::job::{PrecisionChoice, StepReport};
use crate::method::Adaptation;
use crate::model::{Decoder, HeadKind, check_weights, from_f32};
use crate::plugin::PluginSet;
use crate::splits::permutation;
use crate::text::Tokenizer;
use crate::train::batch::{padded_rows, split_by_budget};
use crate::train::layout::{initial, plan_memory};
use crate::train::optimizer::Choice;
use crate::train::schedule::learning_rate;
use crate::train::{Batch, HeadInit, Limits, Optimization, Schedule, Session, Setup, Size};
use crate::weights::{OutTensor, Weights, safetensors_dtype, save};
use crate::{Error, Result, decoder};
use serde::Serialize;
use sparta_graph::{Backend, DType};
use sparta_plugin::method::{Init, Parameter, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to train on what.
#[derive(Clone, Debug)]
pub struct PretrainConfig {
    /// Directory with `config.json` and the tokenizer.
    pub model: PathBuf,
    /// One document per line.
    pub text: PathBuf,
    pub epochs: usize,
    /// Tokens per step; documents are packed whole.
    pub batch_tokens: usize,
    pub lr: f64,
    /// Share of the steps with a rising learning rate; a cosine to 0 follows.
    pub warmup: f64,
    pub weight_decay: f64,
    pub optimizer: Choice,
    /// Documents are cut to so many tokens.
    pub max_length: usize,
    pub seed: u64,
    pub precision: PrecisionChoice,
    /// Type of the saved weights.
    pub dtype: DType,
    /// Directory in the Hugging Face layout, made by this run.
    pub out: PathBuf,
}

#[derive(Clone, Debug, Serialize)]
pub struct PretrainResult {
    pub steps: usize,
    pub documents: usize,
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps, nats per token.
    pub loss: f64,
    pub out: PathBuf,
}

/// Trains all weights from a random start and writes `config.json`, the tokenizer and `model.safetensors` to `out`.
///
/// Errors: a configuration or tokenizer that does not fit; a text without documents; a loss that is not finite.
pub fn pretrain(
    config: &PretrainConfig,
    plugins: &PluginSet,
    device: Box<dyn Backend>,
    mut progress: impl FnMut(&StepReport),
) -> Result<PretrainResult> {
    let decoder = decoder::open(&config.model)?;
    let tokenizer = Tokenizer::open(&config.model)?;
    tokenizer.check_vocab(decoder.vocab_size)?;
    let documents = read_documents(config, &decoder, &tokenizer)?;
    start(config, &decoder)?;

    let weights = Weights::open(&config.out)?;
    let parameters = check_weights(&decoder, &weights, HeadKind::CausalLm)?;
    let options = crate::method::options::check(plugins.method("full")?.info(), &BTreeMap::new())?;
    let precision = config.precision.choose(&parameters, &device.info())?;
    let mut adaptation = Adaptation::new(plugins.method("full")?, parameters, options, config.seed)?;
    adaptation.precision = precision.precision;
    let largest = documents.iter().map(Vec::len).max().unwrap_or(1).max(config.batch_tokens);
    let size = Size { rows: padded_rows(largest), examples: 1 };
    let setup = Setup {
        decoder,
        adaptation,
        head: HeadKind::CausalLm,
        optimization: Optimization {
            optimizer: config.optimizer.optimizer()?,
            weight_decay: config.weight_decay as f32,
            max_grad_norm: Some(1.0),
            ..Optimization::default()
        },
        dropout: 0.0,
        recompute: false,
        seed: config.seed,
        head_init: HeadInit::Normal { std: 0.0 },
        limits: Limits {
            train: Some(size),
            micro_batches: false,
            evaluate: Size { rows: padded_rows(1), examples: 1 },
            positions: documents.iter().map(Vec::len).max().unwrap_or(1),
            head_features: false,
            batch: 1,
        },
    };
    let (_, arena) = plan_memory(&setup, &device.info())?;
    let mut session = Session::open(device, &weights, setup, &arena)?;
    let (steps, loss) = train(config, &documents, &mut session, &mut progress)?;
    let values = session.trained_values()?;
    let parameters = session.setup().adaptation.parameters.clone();
    drop(weights);
    save_model(&config.out, &parameters, &values, config.dtype)?;
    let tokens = documents.iter().map(Vec::len).sum();
    Ok(PretrainResult { steps, documents: documents.len(), tokens, loss, out: config.out.clone() })
}

fn train(
    config: &PretrainConfig,
    documents: &[Vec<u32>],
    session: &mut Session,
    progress: &mut impl FnMut(&StepReport),
) -> Result<(usize, f64)> {
    let order = |epoch: usize| permutation(config.seed, "order", &epoch.to_string(), documents.len());
    let steps_of = |order: &[usize]| {
        let lengths: Vec<usize> = order.iter().map(|&i| documents[i].len()).collect();
        split_by_budget(&lengths, config.batch_tokens, usize::MAX)
    };
    let total_steps: usize = (0..config.epochs).map(|epoch| steps_of(&order(epoch)).len()).sum();
    let (mut step, mut tokens, mut recent) = (0, 0, Vec::new());
    let begin = Instant::now();
    for epoch in 0..config.epochs {
        let order = order(epoch);
        let mut start = 0;
        for end in steps_of(&order) {
            let batch = Batch::pack_lm(order[start..end].iter().map(|&i| &documents[i][..]));
            start = end;
            let lr = learning_rate(Schedule::Cosine, config.lr, config.warmup, step, total_steps);
            let real = batch.real_rows;
            let output = session.step(&[batch], lr)?;
            step += 1;
            tokens += real;
            if !output.loss.is_finite() {
                return Err(Error::Training(format!("step {step}: the loss is {}; lower --lr", output.loss)));
            }
            recent.push(output.loss);
            progress(&StepReport {
                step,
                total_steps,
                epoch,
                loss: output.loss,
                lr,
                grad_norm: output.grad_norm,
                tokens: real,
                tokens_per_second: tokens as f64 / begin.elapsed().as_secs_f64().max(1e-9),
            });
        }
    }
    let last = &recent[recent.len() - recent.len().div_ceil(10)..];
    Ok((step, last.iter().sum::<f64>() / last.len().max(1) as f64))
}

fn read_documents(config: &PretrainConfig, decoder: &Decoder, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let text = fs::read_to_string(&config.text).map_err(Error::io(&config.text))?;
    let lines: Vec<(&str, Option<&str>)> =
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| (line, None)).collect();
    let mut documents = tokenizer.encode_batch(&lines)?;
    documents.iter_mut().for_each(|d| d.truncate(config.max_length.min(decoder.max_position_embeddings)));
    documents.retain(|d| d.len() > 1);
    if documents.is_empty() || config.epochs == 0 {
        return Err(Error::Data(format!("{}: nothing to train on; one document per line", config.text.display())));
    }
    Ok(documents)
}

/// Makes the output directory with configuration, tokenizer and random weights: matrices normal with the configured
/// `initializer_range`, norms neutral, biases zero, as transformers initialises.
fn start(config: &PretrainConfig, decoder: &Decoder) -> Result<()> {
    fs::create_dir_all(&config.out).map_err(Error::io(&config.out))?;
    if config.out.join("model.safetensors").exists() {
        return Err(Error::Usage(format!("{} holds a model already; give another --out", config.out.display())));
    }
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = config.model.join(name);
        if from.exists() {
            fs::copy(&from, config.out.join(name)).map_err(Error::io(from))?;
        }
    }
    let std = f64::from(decoder.initializer_range);
    let mut values = BTreeMap::new();
    let parameters = decoder.parameters(HeadKind::CausalLm);
    for parameter in &parameters {
        let neutral = if decoder.norm_plus_one { 0.0 } else { 1.0 };
        let first = match parameter.role {
            Role::Norm => vec![neutral; parameter.numel() as usize],
            Role::Bias => vec![0.0; parameter.numel() as usize],
            _ => initial(config.seed, &parameter.name, &parameter.shape, Init::Normal { std }),
        };
        values.insert(parameter.name.clone(), first);
    }
    save_model(&config.out, &parameters, &values, DType::F32)
}

fn save_model(out: &Path, parameters: &[Parameter], values: &BTreeMap<String, Vec<f32>>, dtype: DType) -> Result<()> {
    let mut tensors = Vec::new();
    for parameter in parameters {
        let bytes = values.get(&parameter.name).and_then(|v| from_f32(dtype, v));
        let bytes = bytes.ok_or_else(|| Error::Weights(format!("{} cannot be saved as {dtype}", parameter.name)))?;
        let (name, shape) = (parameter.name.clone(), parameter.shape.clone());
        tensors.push(OutTensor { name, dtype: safetensors_dtype(dtype), shape, bytes: Cow::Owned(bytes) });
    }
    save(&out.join("model.safetensors"), &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}
