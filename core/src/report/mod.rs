//! `report.html`: what a run did, in one file that needs no network, and the comparison of several runs.

#[cfg(feature = "reports")]
mod charts;
#[cfg(feature = "reports")]
mod html;
mod run_data;
#[cfg(feature = "reports")]
pub mod svg;

#[cfg(feature = "reports")]
pub use html::duration;
pub use run_data::{LogLine, RunData};

use crate::Result;
use std::path::{Path, PathBuf};

/// The report's name in a run directory.
pub const FILE: &str = "report.html";

/// Writes a report of the runs in these directories to `out`, side by side if there are several. It is made from what
/// the runs stored, so it can be repeated at any time, even for a run that was killed.
///
/// Errors: no directory; one that is not a run's, or whose files are damaged.
#[cfg(feature = "reports")]
pub fn write(directories: &[PathBuf], out: &Path) -> Result<()> {
    use crate::Error;
    use std::io::Write;
    let runs = directories.iter().map(|directory| RunData::read(directory)).collect::<Result<Vec<_>>>()?;
    if runs.is_empty() {
        return Err(Error::Usage("a report needs at least one run directory".into()));
    }
    let page = html::page(&runs)?;
    crate::weights::atomic_write(out, |file| file.write_all(page.as_bytes()).map_err(Error::io(out)))
}

/// Writes nothing: this program was built without reports.
#[cfg(not(feature = "reports"))]
pub fn write(_: &[PathBuf], _: &Path) -> Result<()> {
    Ok(())
}
