//! Stands in for the loader in builds without the feature `libraries`, which have only the plugins that are linked in.

use super::library::Functions;
use std::fs::File;
use std::path::Path;

const NONE: &str = "this program was built without support for libraries, and has only the plugins linked into it";

pub fn check(_: &[u8]) -> Result<(), String> {
    Err(NONE.into())
}

pub fn open(_: &Path, _: File) -> Result<Vec<Functions>, String> {
    Err(NONE.into())
}

pub fn hash_of(path: &Path) -> crate::Result<String> {
    Err(crate::Error::Plugin(format!("{}: {NONE}", path.display())))
}
