//! The runtime: models, weights, text, data, methods, training. The command line adds no logic of its own.

pub mod error;
pub mod model;
pub mod weights;

pub use error::{Error, Result};
