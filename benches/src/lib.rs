//! What the benchmarks share: synthetic models of any shape, whole training steps on them, and readings of the machine.

pub mod machine;
pub mod model;
pub mod training;

pub use model::Shape;
pub use training::{Bench, Case, Measured};

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The directory with the method plugins, where synthetic models are kept, too: `SPARTA_BENCH_DIR`, or where cargo has
/// built this program.
pub fn place() -> Result<PathBuf> {
    if let Some(place) = std::env::var_os("SPARTA_BENCH_DIR") {
        return Ok(place.into());
    }
    let program = std::env::current_exe()?;
    let built = program.parent().and_then(Path::parent);
    Ok(built.ok_or("this program lies in no directory")?.to_owned())
}

/// The middle of the values; the lower one of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
