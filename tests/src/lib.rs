//! What the suites share: the backends of this repository, the command as a child process, and skipping aloud.

use std::io::Write;

pub mod command;
pub mod subjects;

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
