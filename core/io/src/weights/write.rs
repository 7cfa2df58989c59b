//! Writes safetensors files: equal tensors give equal bytes, and a crash leaves either the old file or the new one.

use crate::files::File;
use crate::{Error, Result, files};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A tensor to be written: row-major, little-endian.
#[derive(Clone, Debug)]
pub struct OutTensor<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

/// Name and size of a tensor, whose values are made when it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// Writes tensors from memory. Errors: as [`save_with`].
pub fn save(path: &Path, tensors: &[OutTensor], metadata: &BTreeMap<String, String>) -> Result<()> {
    let specs =
        tensors.iter().map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() }).collect();
    let bytes: BTreeMap<&str, &[u8]> = tensors.iter().map(|t| (t.name.as_str(), &*t.bytes)).collect();
    save_with(path, specs, metadata, |spec| Ok(Cow::Borrowed(bytes[spec.name.as_str()])))
}

/// Writes tensors one at a time; `values` makes the bytes of each in the order of the file, by element size and then
/// name, so that a model need not fit in memory twice. The file appears under its name only once it is complete.
///
/// Errors: a duplicate name; bytes that do not match shape and dtype; those of `values` and of the disk.
pub fn save_with<'a>(
    path: &Path,
    mut specs: Vec<TensorSpec>,
    metadata: &BTreeMap<String, String>,
    mut values: impl FnMut(&TensorSpec) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    // Putting wide elements first keeps every tensor aligned to its element size.
    specs.sort_by(|a, b| {
        let width = |s: &TensorSpec| std::cmp::Reverse(s.dtype.bitsize());
        width(a).cmp(&width(b)).then_with(|| a.name.cmp(&b.name))
    });
    let (header, sizes) = header(path, &specs, metadata)?;
    atomic_write(path, |out| {
        let io = Error::io(path);
        let write = |out: &mut BufWriter<File>| {
            out.get_ref().reserve((8 + header.len() + sizes.iter().sum::<usize>()) as u64)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)
        };
        write(out).map_err(io)?;
        for (spec, size) in specs.iter().zip(sizes) {
            let bytes = values(spec)?;
            if bytes.len() != size {
                return Err(Error::Weights(format!(
                    "{}: tensor `{}` of shape {:?} and dtype {:?} takes {size} bytes, got {}",
                    path.display(),
                    spec.name,
                    spec.shape,
                    spec.dtype,
                    bytes.len()
                )));
            }
            out.write_all(&bytes).map_err(Error::io(path))?;
        }
        Ok(())
    })
}

/// The JSON header, padded to 8 bytes, and the size of each tensor.
fn header(path: &Path, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<usize>)> {
    let mut entries = BTreeMap::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__", serde_json::json!(metadata));
    }
    let (mut offset, mut sizes) = (0, Vec::with_capacity(specs.len()));
    for spec in specs {
        let size = spec.shape.iter().product::<usize>() * spec.dtype.bitsize() / 8;
        let entry = serde_json::json!({
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": [offset, offset + size],
        });
        if entries.insert(spec.name.as_str(), entry).is_some() {
            return Err(Error::Weights(format!("{}: tensor `{}` would be written twice", path.display(), spec.name)));
        }
        offset += size;
        sizes.push(size);
    }
    let mut header = serde_json::to_vec(&entries).map_err(|e| Error::Weights(format!("{}: {e}", path.display())))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok((header, sizes))
}

/// Writes a file beside `path`, syncs it and renames it, so that `path` is never half written. If `fill` fails, nothing
/// is left behind.
pub fn atomic_write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let temporary =
        files::temporary(path).ok_or_else(|| Error::Usage(format!("{}: not the name of a file", path.display())))?;
    let written =
        write_synced(&temporary, path, fill).and_then(|()| files::rename(&temporary, path).map_err(Error::io(path)));
    if written.is_err() {
        // The first error is the one to report.
        let _ = files::remove(&temporary);
        return written;
    }
    files::sync_parent(path).map_err(Error::io(path))
}

/// Errors name `path`, which the user knows.
fn write_synced(temporary: &Path, path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let file = File::create(temporary).map_err(Error::io(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    out.flush().and_then(|()| out.get_ref().sync()).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::super::TensorFile;
    use super::*;
    use std::fs;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> OutTensor<'static> {
        OutTensor { name: name.into(), dtype, shape: shape.to_vec(), bytes: bytes.to_vec().into() }
    }

    #[test]
    fn what_is_written_is_read_and_order_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let mut tensors = vec![
            tensor("b", Dtype::BF16, &[3], &[1, 2, 3, 4, 5, 6]),
            tensor("i", Dtype::I64, &[1], &[9, 0, 0, 0, 0, 0, 0, 0]),
            tensor("a", Dtype::F32, &[], &[0, 0, 128, 63]),
        ];
        let metadata = BTreeMap::from([("format".into(), "pt".into()), ("z".into(), "\"é".into())]);
        save(&one, &tensors, &metadata).unwrap();
        tensors.reverse();
        save(&two, &tensors, &metadata).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());

        let file = TensorFile::open(&one).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "i"]);
        assert_eq!(file.get("b").unwrap().bytes, [1, 2, 3, 4, 5, 6]);
        assert_eq!(file.floats("a").unwrap(), (vec![], vec![1.0]));
        assert_eq!(file.integers("i").unwrap(), (vec![1], vec![9]));
        for name in ["a", "i"] {
            let view = file.get(name).unwrap();
            assert_eq!(view.bytes.as_ptr() as usize % view.bytes.len(), 0);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, "old").unwrap();
        let wrong = [tensor("a", Dtype::F32, &[2], &[0; 4])];
        let text = save(&path, &wrong, &BTreeMap::new()).unwrap_err().to_string();
        assert!(text.contains("8 bytes, got 4"), "{text}");
        let twice = [tensor("a", Dtype::F32, &[1], &[0; 4]), tensor("a", Dtype::F32, &[1], &[0; 4])];
        let text = save(&path, &twice, &BTreeMap::new()).unwrap_err().to_string();
        assert!(text.contains("twice"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let text = save(Path::new("/nonexistent/x"), &[], &BTreeMap::new()).unwrap_err().to_string();
        assert!(text.contains("/nonexistent"), "{text}");
    }
}
