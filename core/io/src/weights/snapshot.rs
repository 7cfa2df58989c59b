//! Trained values and index sets in one file: values as `NAME` in f32, and the set of a parameter as `index.NAME`.

use super::{Dtype, OutTensor, TensorFile, save};
use crate::{Error, Result};
use sparta_train::Snapshot;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Prefix of a parameter's name for its explicit index set, u32, flat and ascending.
pub const INDEX: &str = "index.";

/// Writes values and index sets; tensors missing in `shapes` become flat vectors.
pub fn save_snapshot(
    path: &Path,
    values: &BTreeMap<String, Vec<f32>>,
    indices: &BTreeMap<String, Vec<u32>>,
    shapes: &BTreeMap<String, Vec<usize>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let floats = values.iter().map(|(name, values)| OutTensor {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: shapes.get(name).cloned().unwrap_or_else(|| vec![values.len()]),
        bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
    });
    let sets = indices.iter().map(|(parameter, set)| OutTensor {
        name: format!("{INDEX}{parameter}"),
        dtype: Dtype::U32,
        shape: vec![set.len()],
        bytes: Cow::Borrowed(bytemuck::cast_slice(set)),
    });
    save(path, &floats.chain(sets).collect::<Vec<_>>(), metadata)
}

/// Reads the output of [`save_snapshot`]. Errors: values that are not floats; indices that do not fit in 32 bits.
pub fn read_snapshot(path: &Path) -> Result<Snapshot> {
    let file = TensorFile::open(path)?;
    let mut read = Snapshot::default();
    for name in file.names() {
        match name.strip_prefix(INDEX) {
            Some(parameter) => {
                let indices =
                    file.integers(name)?.1.into_iter().map(u32::try_from).collect::<std::result::Result<_, _>>();
                let indices = indices.map_err(|_| {
                    Error::Weights(format!("{}: `{name}` holds an index that does not fit in 32 bits", path.display()))
                })?;
                read.indices.insert(parameter.to_owned(), indices);
            }
            None => {
                read.values.insert(name.to_owned(), file.floats(name)?.1);
            }
        }
    }
    Ok(read)
}
