//! What the benchmarks share: synthetic models of any shape, whole training steps on them, and readings of the machine.

pub mod machine;
pub mod model;
pub mod training;

pub use model::Shape;
pub use training::{Bench, Case, Measured};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The middle of the values; the lower one of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
