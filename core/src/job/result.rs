//! What a run came to.

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
    /// By the user.
    Interrupted,
}

/// What a run came to; stored as `result.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    pub stopped: Stopped,
    pub steps: usize,
    /// Steps without an update because a gradient was not finite.
    pub skipped_steps: usize,
    /// The step whose state was kept, with early stopping.
    pub best_step: Option<usize>,
    /// Metrics of the saved state; absent after an interruption.
    pub dev: Option<Metrics>,
    pub test: Option<Metrics>,
    /// Answers of the saved state to held-out prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// Test examples that the saved state gets wrong, the most probable first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
    pub trainable: TrainablePlan,
    pub parameters: u64,
    /// Of the single weights that were chosen, the share whose value differs from the model's in the type that the model
    /// is stored in; absent where none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible: Option<f64>,
    /// Real tokens per second of training, by all processes of the run.
    pub tokens_per_second: f64,
    /// Time spent in steps, by all processes of the run.
    pub training_seconds: f64,
    /// Bytes allocated on the device.
    pub device_memory: u64,
    /// Bytes that the plan foresaw.
    pub planned_memory: u64,
    /// Peak resident bytes of the process, where the system tells.
    pub peak_resident: Option<u64>,
    /// What the exchanges of this process have taken, where there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchanged: Option<Spent>,
    pub environment: Environment,
    pub out: PathBuf,
    pub adapter: PathBuf,
    /// The saved adapter against the model that `adapter merge` makes of it, on dev examples; absent if that could not be
    /// computed.
    pub merge_check: Option<MergeCheck>,
}

/// A held-out prompt, the answer that the data has, and the one that the trained model writes: the most probable token
/// each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub prompt: String,
    pub expected: String,
    pub generated: String,
    /// Whether the model ended its answer; otherwise it was cut.
    pub ended: bool,
}

/// An example that a classifier gets wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    pub text: String,
    pub label: String,
    pub predicted: String,
    /// What the model takes the predicted label to be, and the right one.
    pub probabilities: [f64; 2],
}

/// Where a run took place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// `linux x86_64`.
    pub system: String,
    /// Threads that the system offers.
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
