//! The runtime: models, weights, text, data, methods, training. The command line adds no logic of its own.

pub mod error;

pub use error::{Error, Result};
