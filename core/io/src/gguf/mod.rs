//! Models in llama.cpp's GGUF files: `config.json`, `tokenizer.json` and `tokenizer_config.json` of the Hugging Face
//! layout are made from the file's metadata, and tensors have their Hugging Face names.

mod architecture;
mod config;
mod describe;
mod describe_tokenizer;
mod file;
mod kinds;
mod metadata;
mod names;
mod rope;
mod tokenizer;
mod write;

pub use describe::{fields, frequency_factors};
pub use file::{Entry, GgufFile};
pub use metadata::{Metadata, Scalar};
pub use write::{Field, Fields, TensorOut, save};

use crate::{Error, Result, files};
pub use architecture::Architecture;
pub use names::{Heads, to_gguf};
use serde_json::{Map, Value};
use sparta_model::{Arrangement, TensorView};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A model: a single file, or several parts.
#[derive(Debug)]
pub struct Gguf {
    files: Vec<GgufFile>,
    architecture: Architecture,
    tensors: BTreeMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    file: usize,
    /// The name inside the file.
    name: String,
    arrangement: Arrangement,
}

/// The GGUF file of a model's path: the file itself, or the only one in a directory without `config.json`, or its first
/// part. `None` if the path is not a GGUF model.
///
/// Errors: several models in the directory.
pub fn locate(path: &Path) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    if files::is_file(path) {
        return Ok(is_gguf(path).then(|| path.to_owned()));
    }
    if !files::is_dir(path) || files::exists(&path.join("config.json")) {
        return Ok(None);
    }
    let mut found = files::list(path).map_err(Error::io(path))?;
    found.retain(|file| is_gguf(file) && files::is_file(file) && !is_projector(&file_name(file)));
    let name = |file: &PathBuf| file_name(file);
    // Parts after the first belong to the same model.
    let firsts: Vec<&PathBuf> =
        found.iter().filter(|file| part(&file_name(file)).is_none_or(|(_, i, _)| i == 1)).collect();
    match firsts[..] {
        [] => Ok(found.first().cloned()),
        [only] => Ok(Some(only.clone())),
        _ => Err(Error::Usage(format!(
            "{} has {} models ({}): give the file of one",
            path.display(),
            firsts.len(),
            firsts.iter().map(|file| name(file)).take(8).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Whether a file is the image encoder that accompanies a model.
pub fn is_projector(name: &str) -> bool {
    name.to_lowercase().contains("mmproj")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned()
}

/// The name of the whole file, if the name of this one says that it is a piece: `NAME.gguf.part01`, `NAME.gguf-split-a`
/// or `NAME.gguf.aa`.
pub fn cut_from(name: &str) -> Option<&str> {
    let whole = name.to_ascii_lowercase().rfind(".gguf")? + 5;
    let end = name.get(whole..)?.strip_prefix(['.', '-'])?.to_ascii_lowercase();
    let all = |of: fn(&char) -> bool| !end.is_empty() && end.len() <= 3 && end.chars().all(|c| of(&c));
    let counted = all(char::is_ascii_digit) || end.starts_with('a') && all(char::is_ascii_lowercase);
    (counted || end.starts_with("part") || end.starts_with("split")).then(|| &name[..whole])
}

/// Splits `NAME-00002-of-00003.gguf` into name, part and number of parts.
pub fn part(name: &str) -> Option<(&str, usize, usize)> {
    let (stem, end) = name.split_at_checked(name.len().checked_sub(5)?)?;
    let (rest, count) = stem.rsplit_once("-of-").filter(|_| end.eq_ignore_ascii_case(".gguf"))?;
    let (base, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| digits.parse::<usize>().ok().filter(|&n| n > 0 && digits.len() == 5);
    Some((base, number(part)?, number(count)?))
}

impl Gguf {
    /// Opens a model by its file, any of its parts, or its directory. Reads only headers.
    ///
    /// Errors: those of [`locate`] and [`GgufFile::open`]; no such file; a missing part; an unsupported architecture; a
    /// tensor that the architecture does not have.
    pub fn open(path: &Path) -> Result<Gguf> {
        let path = locate(path)?.unwrap_or_else(|| path.to_owned());
        let files = open_parts(GgufFile::open(&path)?)?;
        let error = |file: &GgufFile, what: String| Error::Config(format!("{}: {what}", file.path().display()));
        let of_first = |what: String| error(&files[0], what);
        let architecture = Architecture::of(files[0].metadata()).map_err(of_first)?;
        let heads = config::heads(files[0].metadata(), &architecture).map_err(of_first)?;
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, entry) in file.tensors() {
                let Some((canonical, arrangement)) = names::of(&architecture, name, entry, &heads) else { continue };
                let slot = Slot { file: i, name: name.to_owned(), arrangement };
                if tensors.insert(canonical, slot).is_some() {
                    return Err(error(file, format!("tensor `{name}` appears twice; download the model again")));
                }
            }
        }
        Ok(Gguf { files, architecture, tensors })
    }

    /// The file, or the first part.
    pub fn path(&self) -> &Path {
        self.files[0].path()
    }

    pub fn metadata(&self) -> &Metadata {
        self.files[0].metadata()
    }

    /// Names in the Hugging Face layout, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let slot = self.tensors.get(name)?;
        let (entry, bytes) = self.files[slot.file].get(&slot.name)?;
        Some(TensorView::stored(entry.stored, &entry.shape, bytes, slot.arrangement))
    }

    /// The name of a tensor in the file, and the file.
    pub fn place(&self, name: &str) -> Option<(&str, &Path)> {
        self.tensors.get(name).map(|slot| (slot.name.as_str(), self.files[slot.file].path()))
    }

    pub fn forget(&self, name: &str) {
        if let Some(slot) = self.tensors.get(name) {
            self.files[slot.file].forget(&slot.name);
        }
    }

    /// The contents of `config.json`.
    ///
    /// Errors: a setting that is missing or not supported.
    pub fn config(&self) -> Result<Map<String, Value>> {
        config::config(self).map_err(|what| Error::Config(format!("{}: {what}", self.path().display())))
    }

    /// The contents of `tokenizer.json`.
    ///
    /// Errors: an unknown kind of tokenizer.
    pub fn tokenizer(&self) -> Result<Value> {
        tokenizer::tokenizer(self.metadata()).map_err(|what| self.in_tokenizer(what))
    }

    /// The contents of `tokenizer_config.json`: named special tokens, and the chat template.
    pub fn tokenizer_config(&self) -> Result<Map<String, Value>> {
        tokenizer::config(self.metadata()).map_err(|what| self.in_tokenizer(what))
    }

    /// The tokens that end a text or an answer.
    pub fn end_tokens(&self) -> Result<Vec<u32>> {
        tokenizer::ends(self.metadata()).map_err(|what| self.in_tokenizer(what))
    }

    fn in_tokenizer(&self, what: String) -> Error {
        Error::Tokenizer(format!("{}: {what}", self.path().display()))
    }

    /// Tensors that describe rotations, by the file's own names; a model derived from this one also needs them.
    pub fn rotations(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        let names = self.files.iter().flat_map(|file| file.tensors()).map(|(name, _)| name);
        names.filter(|name| names::is_rotation(name)).filter_map(|name| Some((name, self.raw(name)?)))
    }

    /// A tensor by the file's own name.
    fn raw(&self, name: &str) -> Option<TensorView<'_>> {
        let (entry, bytes) = self.files.iter().find_map(|file| file.get(name))?;
        Some(TensorView::stored(entry.stored, &entry.shape, bytes, Arrangement::None))
    }
}

#[cfg(test)]
mod tests;

/// Opens all parts of a model, given one, in order.
fn open_parts(file: GgufFile) -> Result<Vec<GgufFile>> {
    let error = |what: String| Error::Weights(format!("{}: {what}", file.path().display()));
    let count = file.metadata().count("split.count").map_err(error)?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![file]);
    }
    let name = file_name(file.path());
    let Some((base, _, _)) = part(&name).filter(|(_, _, parts)| *parts as u64 == count) else {
        return Err(error(format!(
            "is one of {count} parts of a model, whose names end in -00001-of-{count:05}.gguf and so on; rename it to the name \
             it was published under"
        )));
    };
    let mut parts = Vec::new();
    for i in 1..=count {
        let path = file.path().with_file_name(format!("{base}-{i:05}-of-{count:05}.gguf"));
        if !files::is_file(&path) {
            return Err(error(format!(
                "the model has {count} parts, and {} is missing; download it beside the others",
                file_name(&path)
            )));
        }
        parts.push(GgufFile::open(path)?);
    }
    Ok(parts)
}
