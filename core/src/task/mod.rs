//! The host's side of tasks: loaded plugins and metrics.

mod loaded;
mod metrics;

pub use loaded::LoadedTask;
pub use metrics::Scores;
