//! One safetensors file, memory mapped.

use crate::files::Map;
use crate::{Error, Result, files};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A safetensors file with tensors of any dtype: batches, adapters, checkpoints, and the shards of a model.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Map,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Its bytes in the map; the checks of the header keep it inside.
    range: Range<usize>,
}

/// A tensor as stored: row-major, little-endian, of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct RawView<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl TensorFile {
    /// Maps the file and checks its header: its length (100 MB at most), offsets that cover the file without gap or
    /// overlap, sizes that agree with shape and dtype. Tensor values are not read.
    pub fn open(path: impl Into<PathBuf>) -> Result<TensorFile> {
        let path = path.into();
        let file = files::open(&path).map_err(Error::io(&path))?;
        let map = Map::of(&file).map_err(Error::io(&path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| explain(&path, &map, e))?;
        tracing::debug!("opened {}, {} bytes", path.display(), map.len());
        let start = 8 + header;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (from, to) = info.data_offsets;
                let entry = Entry { dtype: info.dtype, shape: info.shape.clone(), range: start + from..start + to };
                (name, entry)
            })
            .collect();
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok(TensorFile { path, map, tensors, metadata: metadata.into_iter().collect() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The strings of `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub fn get(&self, name: &str) -> Option<RawView<'_>> {
        self.tensors.get(name).map(|entry| RawView {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.map[entry.range.clone()],
        })
    }

    /// Releases the memory of a tensor's pages that have been read; they are read again when needed.
    pub fn forget(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.map.forget(entry.range.clone());
        }
    }

    /// Shape and values of an integer or boolean tensor. Errors: no such tensor, another dtype, a value beyond i64.
    pub fn integers(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        let view = self.require(name)?;
        let b = view.bytes;
        let values = match view.dtype {
            Dtype::I64 => decode(b, i64::from_le_bytes),
            Dtype::I32 => decode(b, |v| i32::from_le_bytes(v).into()),
            Dtype::U32 => decode(b, |v| u32::from_le_bytes(v).into()),
            Dtype::I16 => decode(b, |v| i16::from_le_bytes(v).into()),
            Dtype::U16 => decode(b, |v| u16::from_le_bytes(v).into()),
            Dtype::I8 => decode(b, |v| i8::from_le_bytes(v).into()),
            Dtype::U8 | Dtype::BOOL => decode(b, |v: [u8; 1]| v[0].into()),
            Dtype::U64 => decode(b, |v| i64::try_from(u64::from_le_bytes(v)))
                .into_iter()
                .collect::<std::result::Result<_, _>>()
                .map_err(|_| self.error(name, "holds a value above 2^63 - 1"))?,
            other => {
                return Err(self.error(name, &format!("has dtype {other:?}, expected integers (I64, I32, U32 ...)")));
            }
        };
        Ok((view.shape.to_vec(), values))
    }

    /// Shape and values of a float tensor as f32 (f64 is rounded). Errors: no such tensor, another dtype.
    pub fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let view = self.require(name)?;
        let b = view.bytes;
        let values = match view.dtype {
            Dtype::F32 => decode(b, f32::from_le_bytes),
            Dtype::F64 => decode(b, |v| f64::from_le_bytes(v) as f32),
            Dtype::BF16 => decode(b, |v| bf16::from_le_bytes(v).to_f32()),
            Dtype::F16 => decode(b, |v| f16::from_le_bytes(v).to_f32()),
            other => {
                return Err(self.error(name, &format!("has dtype {other:?}, expected F32, BF16, F16 or F64")));
            }
        };
        Ok((view.shape.to_vec(), values))
    }

    fn require(&self, name: &str) -> Result<RawView<'_>> {
        self.get(name).ok_or_else(|| {
            let mut names: Vec<&str> = self.names().take(8).collect();
            if names.len() < self.tensors.len() {
                names.push("...");
            }
            Error::Weights(format!("{}: has no tensor `{name}`; it holds: {}", self.path.display(), names.join(", ")))
        })
    }

    fn error(&self, name: &str, what: &str) -> Error {
        Error::Weights(format!("{}: tensor `{name}` {what}", self.path.display()))
    }
}

fn decode<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}

/// Explains why a header was refused, and what to do.
fn explain(path: &Path, bytes: &[u8], error: SafeTensorError) -> Error {
    let size = bytes.len();
    let what = if bytes.starts_with(b"version https://git-lfs") {
        "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".to_string()
    } else {
        match error {
            SafeTensorError::HeaderTooSmall => {
                format!("has {size} bytes, too few for a safetensors file; download it again")
            }
            SafeTensorError::HeaderTooLarge => format!(
                "names a header of {} bytes (at most 100000000 are allowed): not a safetensors file, or damaged",
                header_length(bytes)
            ),
            SafeTensorError::InvalidHeaderLength => format!(
                "names a header of {} bytes but has only {size} bytes: truncated; download it again",
                header_length(bytes)
            ),
            SafeTensorError::MetadataIncompleteBuffer => match described_size(bytes) {
                Some(expected) => format!(
                    "is truncated or damaged: its header describes {expected} bytes, the file has {size}; download it again"
                ),
                None => format!(
                    "is truncated or damaged: the file has {size} bytes, its header describes a different number; \
                     download it again"
                ),
            },
            SafeTensorError::InvalidOffset(name) => format!(
                "is damaged: the bytes of tensor `{name}` overlap others, leave a gap or do not fit its neighbours; \
                 download it again"
            ),
            other => format!("is not a valid safetensors file: {other}; download it again"),
        }
    };
    Error::Weights(format!("{}: {what}", path.display()))
}

fn header_length(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

/// The file size implied by a readable header.
fn described_size(bytes: &[u8]) -> Option<u64> {
    let header = header_length(bytes);
    let text = bytes.get(8..8 + usize::try_from(header).ok()?)?;
    let tensors: BTreeMap<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    let end = tensors.values().filter_map(|t| t["data_offsets"][1].as_u64()).max()?;
    end.checked_add(8)?.checked_add(header)
}

#[cfg(test)]
mod tests {
    use super::super::{OutTensor, save};
    use super::*;

    fn message(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let message = TensorFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("x.safetensors"), "{message}");
        message
    }

    fn with_header(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn reads_every_integer_and_float_type() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batch.safetensors");
        let tensor = |name: &str, dtype, shape: &[usize], bytes: Vec<u8>| OutTensor {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        };
        let tensors = [
            tensor("i64", Dtype::I64, &[2], [-5i64, 7].iter().flat_map(|v| v.to_le_bytes()).collect()),
            tensor("i32", Dtype::I32, &[1], (-5i32).to_le_bytes().to_vec()),
            tensor("u32", Dtype::U32, &[1], u32::MAX.to_le_bytes().to_vec()),
            tensor("u64", Dtype::U64, &[1], u64::MAX.to_le_bytes().to_vec()),
            tensor("bool", Dtype::BOOL, &[2], vec![1, 0]),
            tensor("f64", Dtype::F64, &[1], 0.5f64.to_le_bytes().to_vec()),
            tensor("empty", Dtype::F32, &[0, 3], vec![]),
        ];
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.integers("i64").unwrap(), (vec![2], vec![-5, 7]));
        assert_eq!(file.integers("i32").unwrap().1, [-5]);
        assert_eq!(file.integers("u32").unwrap().1, [4_294_967_295]);
        assert_eq!(file.integers("bool").unwrap().1, [1, 0]);
        assert_eq!(file.floats("f64").unwrap().1, [0.5]);
        assert_eq!(file.floats("empty").unwrap(), (vec![0, 3], vec![]));
        let text = file.integers("u64").unwrap_err().to_string();
        assert!(text.contains("`u64`") && text.contains("2^63"), "{text}");
        let text = file.integers("f64").unwrap_err().to_string();
        assert!(text.contains("F64"), "{text}");
        let text = file.floats("ids").unwrap_err().to_string();
        assert!(text.contains("`ids`") && text.contains("i32"), "{text}");
    }

    #[test]
    fn damaged_files_are_described() {
        assert!(message(b"").contains("0 bytes"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(message(&u64::MAX.to_le_bytes()).contains("18446744073709551615"));
        assert!(message(&200_000_000u64.to_le_bytes()).contains("200000000"));
        assert!(message(&1000u64.to_le_bytes()).contains("truncated"));
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let text = message(&with_header(header, 5));
        assert!(text.contains(&format!("describes {} bytes", 8 + header.len() + 8)), "{text}");
        assert!(message(&with_header(header, 9)).contains("damaged"));
        assert!(message(&with_header("{", 0)).contains("JSON"));
    }

    #[test]
    fn impossible_offsets_are_refused() {
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(message(&with_header(overlap, 12)).contains("`b`"));
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(message(&with_header(twice, 8)).contains("`a`"));
        for entry in [
            r#""shape":[2],"data_offsets":[8,0]"#,
            r#""shape":[3],"data_offsets":[0,8]"#,
            r#""shape":[4611686018427387904,4],"data_offsets":[0,8]"#,
            r#""shape":[2],"data_offsets":[0,18446744073709551615]"#,
        ] {
            message(&with_header(&format!(r#"{{"a":{{"dtype":"F32",{entry}}}}}"#), 8));
        }
    }

    /// Every single-byte change of the header is an error or a readable file, never a panic.
    #[test]
    fn no_changed_byte_causes_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#;
        let good = with_header(header, 16);
        for i in 0..8 + header.len() {
            for change in [1, 2, 8, 128] {
                let mut bytes = good.clone();
                bytes[i] ^= change;
                std::fs::write(&path, &bytes).unwrap();
                let Ok(file) = TensorFile::open(&path) else { continue };
                for name in file.names() {
                    assert!(file.floats(name).is_ok() || file.integers(name).is_ok() || file.get(name).is_some());
                }
            }
        }
    }
}
