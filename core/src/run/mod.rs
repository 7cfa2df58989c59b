//! Whole jobs: plan, train, evaluate, predict, pre-train, and the comparison with other implementations.

mod evaluate;
mod identity;
mod infer;
mod inspect;
mod plan;
mod prepare;
mod pretrain;
mod profile;
mod result;
mod train;

pub use evaluate::Prediction;
pub(crate) use evaluate::predict;
pub use infer::{Adapted, EvalRequest, evaluate};
pub(crate) use inspect::unadapted;
pub use inspect::{InspectRequest, InspectTask, inspect_forward};
pub use plan::{DataPlan, RunPlan, SplitPlan, TrainablePlan, megabytes, thousands};
pub(crate) use prepare::{EVAL_EXAMPLES, body_size, trainable};
pub use prepare::{Prepared, default_head_std, prepare};
pub use pretrain::{PretrainConfig, PretrainResult, pretrain};
pub use profile::profile;
pub use result::{RunResult, Stopped};
pub use train::{OpenDevice, Start, run};

use crate::Result;
use crate::plugin::PluginSet;
use crate::train::RunConfig;
use sparta_graph::DeviceInfo;

/// What a run would do, without touching the device.
pub fn plan(config: &RunConfig, plugins: &PluginSet, device: &DeviceInfo) -> Result<RunPlan> {
    Ok(prepare(config, plugins, device)?.plan)
}
