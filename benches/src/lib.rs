//! What the benchmarks share: synthetic models of any shape, whole training steps on them, and readings of the machine.

pub mod machine;
pub mod model;
pub mod training;

pub use sparta_core::bench::Shape;
pub use training::{Case, OnCpu, Opened, open_device};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
