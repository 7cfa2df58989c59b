//! Files: models and data by name, weights, tokenizer and prompts, checkpoints.

pub mod checkpoint;
pub mod decoder;
pub mod gguf;
pub mod hash;
#[cfg(feature = "hub")]
pub mod hub;
pub mod text;
pub mod weights;

pub use sparta_files as files;

use sparta_model::{Error, Result};
