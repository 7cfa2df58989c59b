//! Logits, losses, gradients of all parameters and whole training runs agree with PyTorch and transformers.
//!
//! The numbers are those of an independent implementation on tiny models of nine families. A compact set of them is
//! part of this crate, in `tests/golden`, where `make.py` makes it. Tolerances are derived from that implementation's
//! distance between f32 and f64; in bf16, from the distance of a reference that rounds.

pub mod answers;
mod data;
mod distance;
mod embedded;
pub mod generation;
pub mod parity;
pub mod trajectories;

pub use data::{FAMILIES, Layout, Source, model_directory};
