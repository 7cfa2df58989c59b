//! Logits, losses, gradients of all parameters and whole training runs agree with PyTorch and transformers.
//!
//! The numbers are those of an independent implementation on tiny models of six families. A compact set of them is part
//! of this crate, in `tests/golden`; `make.py` there says how it is made of the complete one. Tolerances are those that
//! the implementation derives from the distance between f32 and f64; in bf16, from the distance of a reference that rounds.

pub mod answers;
mod data;
mod distance;
mod embedded;
pub mod parity;
pub mod trajectories;

pub use data::{FAMILIES, Layout, Source};
