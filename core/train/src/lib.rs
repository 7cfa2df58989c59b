//! Training on a device: packed batches, the graphs of a step, the session that runs them, schedules and evaluation.
//!
//! Uses neither the file system nor the clock: weights come from a [`sparta_model::WeightSource`], and state is
//! returned as values.

pub mod batch;
mod buckets;
mod ceiling;
mod decode;
pub mod evaluate;
mod fit;
pub mod graphs;
mod hook;
mod inspect;
pub mod layout;
mod metrics;
mod non_finite;
pub mod objective;
pub mod optimizer;
mod peers;
mod profile;
pub mod schedule;
pub mod score;
mod session;
mod setup;
mod shared;
mod step;
mod tensors;
mod update;
mod whole;

pub use batch::{Batch, Encoded, Labels, Size, Target};
pub use ceiling::{Bandwidth, Ceiling, best_time, numbers};
pub use evaluate::{Evaluation, Prediction};
pub use fit::{Demand, Fit, MICRO_BATCH_TOKENS, fit};
pub use hook::StepPoint;
pub use inspect::Inspected;
pub use layout::{LargestBuffer, SessionMemory};
pub use metrics::{LabelMetrics, Metrics, Scores};
pub use non_finite::NonFinite;
pub use objective::Objective;
pub use optimizer::{Optimization, Optimizer};
pub use peers::{Alone, Peers};
pub use profile::{CallTime, Profile};
pub use schedule::Schedule;
pub use session::{Session, Snapshot, StateTensor};
pub use setup::{HeadInit, Recompute, SessionLimits, Setup};
pub use shared::own_share;
pub use step::{StepOutput, Submitted};
pub use tensors::{DeviceTensors, MemoryKind};

use sparta_model::{Error, Result};
