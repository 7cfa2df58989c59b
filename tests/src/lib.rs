//! What the suites share: deterministic data, tensors on the host, and plans run on any backend.

pub mod device;
pub mod random;
pub mod tensor;

pub use device::{Device, Session};
pub use random::Random;
pub use tensor::Tensor;
