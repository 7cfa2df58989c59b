//! The runtime's error type. A message says what failed and where, what was expected and given, and what to do next.

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
    /// A method's answer that does not fit the model or its options.
    #[error("{0}")]
    Method(String),
    /// A run that cannot start or continue: too large for its device, a non-finite loss, no gradient, a damaged
    /// checkpoint.
    #[error("{0}")]
    Training(String),
    /// The user's arguments and configuration.
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

/// What to do about a file system error.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free disk space and try again",
        ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: choose another place",
        ErrorKind::PermissionDenied => "; check its permissions, or choose another place",
        _ => "",
    }
}
