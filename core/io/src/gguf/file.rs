//! One memory-mapped GGUF file: its metadata and tensor table, with every count, size and offset checked against the
//! file's bytes.

use super::kinds::stored;
use super::metadata::{Metadata, Reader};
use crate::files::Map;
use crate::{Error, Result, files};
use sparta_model::Storage;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Limits of a file; real models have about 1000 tensors and 60 keys.
const MOST_TENSORS: u64 = 1 << 17;
const MOST_KEYS: u64 = 1 << 16;
/// As in llama.cpp.
const MOST_AXES: u32 = 4;
const ALIGNMENT: u64 = 32;
const LARGEST_ALIGNMENT: u64 = 1 << 16;

#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Map,
    metadata: Metadata,
    tensors: BTreeMap<String, Entry>,
}

/// An entry of the tensor table.
#[derive(Debug)]
pub struct Entry {
    pub stored: Storage,
    /// Rows before columns, as in safetensors.
    pub shape: Vec<usize>,
    /// Its bytes, within the map.
    range: Range<usize>,
}

impl GgufFile {
    /// Maps the file and checks its header. Values of tensors are not read.
    ///
    /// Errors name file and place: a different version or byte order; counts and sizes beyond the file; a tensor of an
    /// unsupported type; tensors that overlap or are not aligned.
    pub fn open(path: impl Into<PathBuf>) -> Result<GgufFile> {
        let path = path.into();
        let file = files::open(&path).map_err(Error::io(&path))?;
        let map = Map::of(&file).map_err(Error::io(&path))?;
        let (metadata, tensors) = header(&map).map_err(|what| Error::Weights(format!("{}: {what}", path.display())))?;
        Ok(GgufFile { path, map, metadata, tensors })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// In alphabetical order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    pub fn get(&self, name: &str) -> Option<(&Entry, &[u8])> {
        let entry = self.tensors.get(name)?;
        Some((entry, self.map.get(entry.range.clone())?))
    }

    /// Releases the memory of a tensor's pages that have been read; they are read again when needed.
    pub fn forget(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.map.forget(entry.range.clone());
        }
    }
}

type Header = (Metadata, BTreeMap<String, Entry>);

fn header(bytes: &[u8]) -> std::result::Result<Header, String> {
    let mut reader = Reader::new(bytes);
    if bytes.starts_with(b"version https://git-lfs") {
        return Err("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into());
    }
    if !bytes.starts_with(b"GGUF") {
        return Err("is not a GGUF file: it does not begin with GGUF; download it again".into());
    }
    reader.skip(4)?;
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("is a big-endian GGUF file, which is not supported; convert the model again".into());
        }
        version => return Err(format!("is GGUF version {version}; versions 2 and 3 are supported")),
    }
    let (tensors, keys) = (reader.u64()?, reader.u64()?);
    if tensors > MOST_TENSORS || keys > MOST_KEYS {
        return Err(format!(
            "names {tensors} tensors and {keys} keys, at most {MOST_TENSORS} and {MOST_KEYS} are read: it is damaged; \
             download it again"
        ));
    }
    let metadata = Metadata::read(&mut reader, keys)?;
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(Info::read(&mut reader)?);
    }
    let alignment = metadata.count("general.alignment")?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=LARGEST_ALIGNMENT).contains(&alignment) {
        return Err(format!(
            "`general.alignment` is {alignment}, expected a power of two from 8 to {LARGEST_ALIGNMENT}"
        ));
    }
    let start = (reader.at() as u64).next_multiple_of(alignment);
    Ok((metadata, place(infos, start, alignment, bytes.len())?))
}

/// An entry of the table, as stored.
struct Info {
    name: String,
    shape: Vec<usize>,
    stored: Storage,
    offset: u64,
}

impl Info {
    fn read(reader: &mut Reader) -> std::result::Result<Info, String> {
        let name = reader.text()?;
        let axes = reader.u32()?;
        if axes > MOST_AXES {
            return Err(format!("tensor `{name}` has {axes} axes, expected at most {MOST_AXES}"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(reader.u64()?);
        }
        let (kind, offset) = (reader.u32()?, reader.u64()?);
        let stored = stored(kind).map_err(|what| format!("tensor `{name}` {what}"))?;
        // The file's first axis is the innermost one.
        let shape: Option<Vec<usize>> = shape.into_iter().rev().map(|n| usize::try_from(n).ok()).collect();
        let shape = shape.ok_or_else(|| format!("tensor `{name}` has more elements than this machine can address"))?;
        Ok(Info { name, shape, stored, offset })
    }

    /// Size of the values in bytes.
    fn bytes(&self) -> std::result::Result<usize, String> {
        if let Storage::Blocks(blocks) = self.stored {
            let columns = self.shape.last().copied().unwrap_or(1);
            if !columns.is_multiple_of(blocks.elements()) {
                return Err(format!(
                    "tensor `{}` has rows of {columns} elements in {blocks}, expected a multiple of {}",
                    self.name,
                    blocks.elements()
                ));
            }
        }
        let elements = self.shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
        let bytes = elements.and_then(|n| self.stored.bytes(n)).filter(|&bytes| bytes <= isize::MAX as usize);
        bytes.ok_or_else(|| format!("tensor `{}` of shape {:?} is larger than any file", self.name, self.shape))
    }
}

/// Places the tensors. Errors: one that is misaligned, beyond the end of the file, overlapping, or duplicate.
fn place(
    mut infos: Vec<Info>,
    start: u64,
    alignment: u64,
    size: usize,
) -> std::result::Result<BTreeMap<String, Entry>, String> {
    infos.sort_by_key(|info| info.offset);
    let (mut tensors, mut free) = (BTreeMap::new(), 0u64);
    for info in infos {
        let (name, offset, bytes) = (&info.name, info.offset, info.bytes()?);
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor `{name}` begins at {offset}, expected a multiple of {alignment}"));
        }
        if offset < free {
            return Err(format!("tensor `{name}` begins inside another one: the file is damaged; download it again"));
        }
        let end = start.checked_add(offset).and_then(|begin| begin.checked_add(bytes as u64));
        let Some(end) = end.filter(|&end| end <= size as u64) else {
            return Err(format!(
                "is truncated or damaged: tensor `{name}` has {bytes} bytes from byte {} on, the file has {size}; download it \
                 again",
                start.saturating_add(offset)
            ));
        };
        free = offset + bytes as u64;
        let range = end as usize - bytes..end as usize;
        let entry = Entry { stored: info.stored, shape: info.shape, range };
        if tensors.insert(info.name.clone(), entry).is_some() {
            return Err(format!("tensor `{}` appears twice: the file is damaged; download it again", info.name));
        }
    }
    Ok(tensors)
}
