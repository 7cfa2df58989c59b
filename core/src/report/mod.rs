//! `report.html`: what a run did, in one file without scripts or network, and the comparison of several runs.

mod charts;
mod html;
mod run_data;
pub mod svg;

pub use html::duration;
pub use run_data::RunData;

use crate::weights::atomic_write;
use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The report's name in a run directory.
pub const FILE: &str = "report.html";

/// Writes a report of the runs in these directories to `out`, side by side if there are several. It is made from what
/// the runs stored, so it can be repeated at any time, even for a run that was killed.
///
/// Errors: no directory; one that is not a run, or has damaged files.
pub fn write(directories: &[PathBuf], out: &Path) -> Result<()> {
    let runs = directories.iter().map(|directory| RunData::read(directory)).collect::<Result<Vec<_>>>()?;
    if runs.is_empty() {
        return Err(Error::Usage("a report needs at least one run directory".into()));
    }
    let page = html::page(&runs)?;
    atomic_write(out, |file| file.write_all(page.as_bytes()).map_err(Error::io(out)))
}
