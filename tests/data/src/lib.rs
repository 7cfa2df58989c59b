//! Where tests find data that is not part of the repository: published tokenizers and data sets, small models, complete
//! golden data. CONTRIBUTING.md lists them.

use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or directory of the optional test data, or `None` and a message. This bypasses the test harness, which hides
/// the output of tests that pass.
pub fn find(path: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let found = std::env::var_os("SPARTA_TEST_DATA").map_or_else(beside, PathBuf::from).join(path);
    if found.exists() {
        return Some(found);
    }
    let what = found.display();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what} is missing; it is optional test data: see CONTRIBUTING.md");
    None
}
