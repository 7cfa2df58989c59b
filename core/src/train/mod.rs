//! Training: graphs of a step, the session that runs them on a device, schedules, the loop.

mod blame;
pub mod checkpoint;
pub mod config;
pub mod graphs;
pub mod layout;
pub mod profile;
pub mod schedule;
pub mod session;

pub use blame::Blame;
pub use config::{EvalReport, Metrics, Observer, Recompute, RunConfig, Schedule, StepReport};
pub use graphs::{Optimizer, Size};
pub use layout::Limits;
pub use profile::{Ceiling, Profile};
pub use session::{HeadInit, Session, Setup, StateTensor, StepOutput};
