//! Log messages on stderr, for diagnosis: `-v`, or the filter in [`VARIABLE`].

use sparta_core::{Error, Result};
use std::io;
use tracing_subscriber::EnvFilter;

/// The environment variable for a filter such as `sparta=debug,wgpu=info`, which overrides `-v`.
pub const VARIABLE: &str = "SPARTA_LOG";

/// Starts logging if requested. Our own crates' names begin with `sparta`; the libraries below them log as well.
///
/// Errors: an invalid filter.
pub fn start(verbosity: u8, filter: Option<String>) -> Result<()> {
    let filter = match (filter.filter(|filter| !filter.is_empty()), verbosity) {
        (None, 0) => return Ok(()),
        (Some(filter), _) => filter,
        (None, 1) => "sparta=info,warn".into(),
        (None, 2) => "sparta=debug,info".into(),
        (None, _) => "trace".into(),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        Error::Usage(format!("{VARIABLE}: `{filter}` is not a filter such as `sparta=debug,wgpu=info`: {error}"))
    })?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).without_time();
    // Fails only if the process has already started logging.
    let _ = subscriber.with_ansi(false).try_init();
    Ok(())
}
