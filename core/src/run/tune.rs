//! The kernels of a run that its device chooses by measuring.

use crate::job::RunConfig;
use crate::{Error, Result, files};
use sparta_graph::{Backend, Tuned};
use std::path::Path;

/// The file of a run directory with the choices.
pub const TUNED: &str = "tuning.json";

/// Lets a newly opened device measure, if the run may, beginning with the choices recorded in the run directory: a
/// resumed run computes the same bits. Several processes would choose differently, so they do not measure, nor does a
/// process whose batches are split like theirs.
///
/// Returns a warning if stored choices cannot be used.
///
/// Errors: a record that cannot be read.
pub fn start(device: &mut dyn Backend, config: &RunConfig, processes: usize) -> Result<Option<String>> {
    if config.no_autotune || processes > 1 || config.micro_batches.is_some() {
        return Ok(None);
    }
    Ok(device.autotune(recorded(&config.out)?.as_ref()))
}

/// The choices recorded in a run directory; `None` without a record.
///
/// Errors: a file that is not a record.
pub fn recorded(out: &Path) -> Result<Option<Tuned>> {
    let path = out.join(TUNED);
    if !files::exists(&path) {
        return Ok(None);
    }
    let text = files::read_text(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    let tuned = serde_json::from_str(&text);
    tuned.map(Some).map_err(|e| {
        Error::Usage(format!(
            "{}: expected the kernels that the run chose: {e}; without the file they are measured again, and sums may \
             round differently",
            path.display()
        ))
    })
}
