//! Files: models and data by name, weights, tokenizer and prompts, checkpoints.

pub mod checkpoint;
pub mod decoder;
pub mod files;
pub mod gguf;
pub mod hash;
pub mod hub;
pub mod text;
pub mod weights;

use sparta_model::{Error, Result};
