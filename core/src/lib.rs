//! The runtime: models, weights, text, data, methods, training. The command line adds no logic of its own.

pub mod adapter;
pub mod analysis;
pub mod data;
pub mod device;
pub mod error;
pub mod files;
pub mod hub;
pub mod method;
pub mod model;
pub mod plugin;
pub mod report;
pub mod run;
pub mod task;
pub mod tensors;
pub mod text;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
