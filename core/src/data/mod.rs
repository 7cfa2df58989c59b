//! From examples to splits to packed batches.

pub mod batch;
pub mod splits;

pub use batch::{Batch, Encoded};
