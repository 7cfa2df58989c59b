//! Training on a device: packed batches, graphs of a step, the session that runs them, schedules, evaluation.
//!
//! No file system and no clock: weights come from a [`sparta_model::WeightSource`], state goes out as values.

pub mod batch;
mod blame;
pub mod evaluate;
mod fit;
pub mod graphs;
pub mod layout;
mod metrics;
mod profile;
pub mod schedule;
mod session;
mod setup;
mod tensors;

pub use batch::{Batch, Encoded};
pub use blame::Blame;
pub use evaluate::Prediction;
pub use fit::{Demand, Fit, MICRO_BATCH_TOKENS, fit};
pub use graphs::{Optimizer, Size};
pub use layout::{LargestBuffer, Planned};
pub use metrics::{Metrics, Scores};
pub use profile::{Ceiling, Profile};
pub use schedule::Schedule;
pub use session::{Session, StateTensor, StepOutput};
pub use setup::{HeadInit, Limits, Recompute, Setup};
pub use tensors::{MemoryKind, Tensors};

use sparta_model::{Error, Result};
