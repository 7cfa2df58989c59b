//! The runtime: models, weights, text, data, methods, training. The command line adds no logic of its own.

pub mod error;
pub mod method;
pub mod model;
pub mod plugin;
pub mod task;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
