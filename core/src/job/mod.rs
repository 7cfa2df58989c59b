//! The types of a job: its configuration, plan, progress reports and result.

pub mod config;
mod merge_check;
mod needs;
mod paper;
mod plan;
mod precision;
mod progress;
mod result;
mod together;

pub use config::{Control, EarlierLength, OptimizerOptions, RunConfig, Sources};
pub use merge_check::MergeCheck;
pub use needs::Needs;
pub use paper::{PaperMemory, PaperRow};
pub use plan::{DataPlan, Lengths, RunPlan, ScoringPlan, SplitPlan, TrainablePlan, body_size, thousands};
pub use precision::{ChosenPrecision, PrecisionChoice};
pub use progress::{EvalReport, Observer, Silent, StepReport};
pub use result::{Answer, Environment, Mistake, RunResult, Stopped};
pub use together::{Exchange, Member, Spent, TogetherPlan};
