//! Jobs: train, evaluate, predict, merge, report. The command line adds no logic.
//!
//! The lower layers are re-exported under their own names, so that an application needs only this crate.

pub mod adapter;
#[cfg(feature = "analysis")]
pub mod analysis;
pub mod assumed;
#[cfg(feature = "reports")]
pub mod bench;
pub mod child;
pub mod device;
pub mod job;
pub mod plugin;
pub mod report;
pub mod run;
pub mod splits;
pub mod team;

#[cfg(feature = "hub")]
pub use sparta_io::hub;
pub use sparta_io::{checkpoint, decoder, files, gguf, hash, text, weights};
pub use sparta_model::{self as model, Error, Result, method};
pub use sparta_train as train;
