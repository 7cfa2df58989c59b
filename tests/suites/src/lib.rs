//! What every backend has to pass, as a library that takes any backend and precision.
//!
//! [`conformance`] runs each op, forward and backward, against an f64 reference. [`golden`] compares logits, losses,
//! gradients and whole training runs of tiny models with those of PyTorch and transformers.

pub mod conformance;
pub mod contract;
pub mod device;
pub mod golden;
pub mod list;
pub mod plugin;
pub mod random;
pub mod subject;
pub mod tensor;

pub use device::{BoundPlan, Device};
pub use random::Random;
pub use subject::{Precision, Subject};
pub use tensor::Tensor;
