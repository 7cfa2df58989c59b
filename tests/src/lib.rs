//! What the suites share: deterministic data, tensors on the host, and plans run on any backend.

use std::io::Write;

pub mod command;
pub mod device;
pub mod random;
pub mod tensor;

pub use device::{Device, Session};
pub use random::Random;
pub use tensor::Tensor;

/// Says that a part of a suite did not run. Written past the capture of the test harness, which does not show the
/// output of a test that passes.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// [`skipped`] for what must be present in CI.
pub fn skipped_unless_in_ci(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}, but CI is set");
    skipped(why);
}
