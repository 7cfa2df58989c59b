//! What a run is asked to do, and how it tells its progress.

use crate::text::Instruct;
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that decides a run. The command line and the configuration file fill it; it is stored with the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Directory in the Hugging Face layout.
    pub model: PathBuf,
    /// Task id, for example `sst2`.
    pub task: String,
    pub data: PathBuf,
    /// Method name, for example `sparta`.
    pub method: String,
    /// Options of the method as given; checked against what the method declares.
    pub method_options: BTreeMap<String, serde_json::Value>,
    pub epochs: usize,
    /// Ends the run after so many optimizer steps, whatever `epochs` says.
    pub max_steps: Option<usize>,
    /// Examples per optimizer step.
    pub batch_size: usize,
    /// `None`: the method's default.
    pub lr: Option<f64>,
    pub schedule: Schedule,
    /// Share of all steps over which the learning rate rises linearly from 0.
    pub warmup: f64,
    pub weight_decay: f64,
    /// Clip the global gradient norm to this.
    pub max_grad_norm: Option<f64>,
    /// Dropout of attention probabilities while training.
    pub dropout: f64,
    pub seed: u64,
    /// Evaluate on dev every so many steps; `None`: at the end of each epoch.
    pub eval_interval: Option<usize>,
    /// Stop after so many evaluations on dev without improvement; the best state is kept.
    pub patience: Option<usize>,
    /// What counts as an improvement of the dev metric.
    pub min_delta: f64,
    /// Training examples of more tokens are left out.
    pub max_length: Option<usize>,
    pub max_train: Option<usize>,
    pub max_dev: Option<usize>,
    pub max_test: Option<usize>,
    /// Standard deviation of a new head; `None`: 0.06 / sqrt(hidden) (DESIGN 6).
    pub head_init_std: Option<f64>,
    /// Put the task to an instruction model: a prompt in its chat template, and a head that begins as the rows of words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruct: Option<Instruct>,
    /// Tokens per micro-batch; a larger batch is split, with the gradients summed.
    pub micro_batch_tokens: usize,
    /// Whether the activations of a layer are computed again in the backward pass.
    pub recompute: Recompute,
    /// Write a checkpoint every so many steps, besides those at evaluations on dev and at the end.
    pub checkpoint_interval: usize,
    /// Newest checkpoints kept.
    pub keep_checkpoints: usize,
    /// Go on after a step whose gradient is not finite, without an update, instead of ending the run.
    pub skip_nonfinite: bool,
    /// The run directory.
    #[serde(skip)]
    pub out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// Linear to 0 after the warm-up.
    Linear,
    /// Half a cosine to 0 after the warm-up.
    Cosine,
}

/// Activation checkpointing by layer: about a third more work for much less memory, and the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Where the run would not fit the device otherwise.
    #[default]
    Auto,
    On,
    Off,
}

/// One optimizer step, as written to `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    pub step: usize,
    pub total_steps: usize,
    pub epoch: usize,
    /// `null` in the file where it is not finite: the step was skipped.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    pub lr: f64,
    /// As `loss`.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Real tokens of the step's examples.
    pub tokens: usize,
    /// Since training began, evaluation excluded; not stored, so that equal runs give equal files.
    #[serde(skip)]
    pub tokens_per_second: f64,
}

/// JSON knows no NaN; it is written as `null`.
fn number_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub examples: u64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// The task's metrics by id: `accuracy`, `f1`, `mcc`.
    #[serde(flatten)]
    pub scores: BTreeMap<String, f64>,
    /// `confusion[label][predicted]`, in examples.
    #[serde(default)]
    pub confusion: Vec<Vec<u64>>,
}

/// One evaluation, as written to `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalReport {
    /// Optimizer steps done before.
    pub step: usize,
    /// `dev` or `test`.
    pub split: String,
    pub metrics: Metrics,
    /// Whether this is the best on dev so far.
    pub best: bool,
}

/// What a run tells while it goes on. All methods may do nothing.
pub trait Observer {
    /// The plan, before anything is allocated on the device.
    fn plan(&mut self, plan: &crate::run::RunPlan);
    fn step(&mut self, report: &StepReport);
    fn eval(&mut self, report: &EvalReport);
    /// Done and all parts of an evaluation, in examples.
    fn eval_progress(&mut self, split: &str, done: usize, total: usize);
    fn message(&mut self, text: &str);
    /// True ends the run cleanly after the current step.
    fn stop_requested(&self) -> bool;
}

impl RunConfig {
    /// The configuration of an earlier run, to go on with it.
    ///
    /// Errors: no run directory; a file of another version.
    pub fn of_run(dir: &Path) -> Result<RunConfig> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(Error::Usage(format!("{}: there is no run here: no config.json", dir.display())));
        }
        let text = files::read_text(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
        let config: RunConfig = serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("{}: not the configuration of a run: {e}", path.display())))?;
        Ok(RunConfig { out: dir.to_owned(), ..config })
    }
}
