//! The one error type of the runtime. A message says what, where, expected, got, and what to do next.

use std::io::ErrorKind;
use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json`: unreadable, unknown architecture, unsupported or contradictory values.
    #[error("{0}")]
    Config(String),
    /// Weight files and other tensor files.
    #[error("{0}")]
    Weights(String),
    #[error("{0}")]
    Tokenizer(String),
    /// The hub: names, access, connections, hashes.
    #[error("{0}")]
    Hub(String),
    /// Data sets: missing files, malformed rows, empty splits.
    #[error("{0}")]
    Data(String),
    /// A plugin that could not be loaded or that broke its contract.
    #[error("{0}")]
    Plugin(String),
    /// What a method declared does not fit the model or its options.
    #[error("{0}")]
    Method(String),
    /// A run that cannot go on: non-finite loss, no gradient, damaged checkpoint.
    #[error("{0}")]
    Training(String),
    /// Arguments and configuration of the user.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Device(#[from] sparta_graph::BackendError),
    #[error(transparent)]
    Graph(#[from] sparta_graph::GraphError),
    #[error("{}: {source}{}", path.display(), advice(source))]
    Io { path: PathBuf, source: std::io::Error },
}

impl Error {
    /// For `map_err` after a file operation on `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}

/// What to do about an error of the file system.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free disk space and try again",
        ErrorKind::ReadOnlyFilesystem => "; it can only be read: choose a place that can be written",
        ErrorKind::PermissionDenied => "; check its permissions, or choose another place",
        _ => "",
    }
}
