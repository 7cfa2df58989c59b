//! Whole jobs: plan, train, evaluate, predict, generate, pre-train, and the comparison with other implementations.

mod answers;
mod blocks;
mod directory;
mod encode;
mod epochs;
mod generate;
mod identity;
mod infer;
mod inspect;
pub mod memory;
mod mistakes;
mod prepare;
mod pretrain;
mod profile;
mod score;
mod show;
mod together;
mod train;
mod tune;

pub use generate::{Finish, Generated, Generator, Prompt, Sampling, Turn, Writing};
pub use infer::{AdaptedModel, EvalRequest, Predictor, evaluate};
pub use inspect::{InspectRequest, InspectTask, inspect_forward};
pub use prepare::{Prepared, default_head_std, objective_of, prepare};
pub use pretrain::{PretrainConfig, PretrainResult, pretrain};
pub use profile::profile;
pub use score::CHOSEN;
pub use show::{ShownData, ShownExample, ShownSplit, show};
pub use train::{OpenDevice, Start, run, run_together};

use crate::Result;
use crate::job::{RunConfig, RunPlan};
use crate::plugin::PluginSet;
use sparta_graph::DeviceInfo;

/// What a run would do, without touching the device.
pub fn plan(config: &RunConfig, plugins: &PluginSet, device: &DeviceInfo) -> Result<RunPlan> {
    Ok(prepare(config, plugins, device)?.plan)
}
