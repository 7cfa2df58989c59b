//! What a run is asked to do.

use super::PrecisionChoice;
use crate::text::Instruct;
use crate::train::optimizer::Choice;
use crate::train::{Recompute, Schedule};
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
    /// What updates the trained values.
    #[serde(default, skip_serializing_if = "Choice::is_default")]
    pub optimizer: Choice,
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
    /// The float types of the graph. What a run has written down is never `auto`.
    #[serde(default = "before_there_was_a_choice")]
    pub precision: PrecisionChoice,
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

fn before_there_was_a_choice() -> PrecisionChoice {
    PrecisionChoice::F32
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
