//! The result of a run.

use super::{MergeCheck, Spent, TrainablePlan};
use crate::train::Metrics;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// All steps were done.
    Completed,
    EarlyStopping,
    /// Stopped by the user.
    Interrupted,
}

/// The result of a run, stored as `result.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    pub stopped: Stopped,
    pub steps: usize,
    /// Steps without an update, as a gradient was not finite.
    pub skipped_steps: usize,
    /// The step whose state was kept, with early stopping.
    pub best_step: Option<usize>,
    /// Metrics of the saved state; absent after an interruption.
    pub dev: Option<Metrics>,
    pub test: Option<Metrics>,
    /// The saved state's answers to held-out prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// Test examples that the saved state gets wrong, the most confident mistakes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
    pub trainable: TrainablePlan,
    pub parameters: u64,
    /// Share of the individually chosen weights that differ from the model's in the type it is stored in; absent if
    /// none were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible: Option<f64>,
    /// Tokens per second of training, over all processes of the run.
    pub tokens_per_second: f64,
    /// Time spent in steps, over all processes of the run.
    pub training_seconds: f64,
    /// Bytes allocated on the device.
    pub device_memory: u64,
    /// Bytes that the plan predicted.
    pub planned_memory: u64,
    /// Peak resident bytes of the process, if the system reports them.
    pub peak_resident: Option<u64>,
    /// What the exchanges of this process cost, if there were several processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchanged: Option<Spent>,
    pub environment: Environment,
    pub out: PathBuf,
    pub adapter: PathBuf,
    /// Comparison of the saved adapter with its merged model on dev examples; absent if it could not be computed.
    pub merge_check: Option<MergeCheck>,
}

/// A held-out prompt, the data's answer, and the trained model's, generated greedily.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub prompt: String,
    pub expected: String,
    pub generated: String,
    /// Whether the model ended its answer; otherwise it was truncated.
    pub ended: bool,
}

/// An example that a classifier gets wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    pub text: String,
    pub label: String,
    pub predicted: String,
    /// The model's probabilities of the predicted and of the right label.
    pub probabilities: [f64; 2],
}

/// The machine and program of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// `linux x86_64`.
    pub system: String,
    /// Available threads.
    pub threads: usize,
}

impl Environment {
    pub fn of_this_process() -> Environment {
        Environment {
            version: env!("CARGO_PKG_VERSION").into(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}
