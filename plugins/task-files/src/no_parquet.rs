//! Stands in for [`parquet`](crate::parquet) in builds without the feature.

use crate::table::{Reading, Table};
use sparta_plugin::Error;
use std::path::Path;

fn none(path: &Path) -> Error {
    Error(format!(
        "{}: this program was built without support for parquet files; convert it to JSONL or CSV",
        path.display()
    ))
}

pub(crate) fn table(path: &Path, _: Reading) -> Result<Table, Error> {
    Err(none(path))
}

pub(crate) fn count(path: &Path) -> Result<usize, Error> {
    Err(none(path))
}
