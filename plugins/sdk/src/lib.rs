#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod abi;
pub mod backend;
pub mod communicator;
mod error;
pub mod export;
pub mod graph;
mod host;
pub mod method;
pub mod options;
mod step;
pub mod task;
pub mod testing;

pub use error::Error;
pub use host::host_memory;
/// The crate that [`method::Method::on_step`] returns its state with.
pub use serde_json;
