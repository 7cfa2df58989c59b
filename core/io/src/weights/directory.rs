//! The weights of a model directory: one safetensors file, or several with an index.

use super::file::TensorFile;
use crate::gguf::{self, Gguf};
use crate::{Error, Result, files};
use safetensors::Dtype;
use serde::Deserialize;
use sparta_graph::DType;
use sparta_model::{Quantize, TensorView, WeightSource};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model directory by their Hugging Face names. Names of the backbone always begin with `model.`,
/// even if the files hold a bare backbone without that prefix, or a multimodal model whose text part has other names.
#[derive(Debug)]
pub struct Weights {
    dir: PathBuf,
    files: Vec<TensorFile>,
    /// The model, if it is a GGUF file; there are no other files then.
    gguf: Option<Gguf>,
    /// The type to which values stored in blocks are decoded.
    decoded: DType,
    /// What matrices of floats are rounded to.
    quantize: Option<Quantize>,
    tensors: BTreeMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    /// Position among the files.
    file: usize,
    /// The name inside the file; for a GGUF file, the Hugging Face name.
    name: String,
    dtype: DType,
    /// Its values with reordered rows.
    reordered: Option<(DType, Vec<u8>)>,
}

impl Weights {
    /// Opens `model.safetensors`, or else the shards of `model.safetensors.index.json`, or a GGUF file. Only headers
    /// are read.
    ///
    /// Errors name file and tensor: nothing to open, a damaged file, an index that disagrees with its shards or points
    /// outside the directory, a tensor in two shards, a dtype other than f32, bf16, f16.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Weights> {
        let weights = Weights::find(dir)?;
        weights.check_present()?;
        Ok(weights)
    }

    /// As [`Weights::open`], but a directory without weights gives no tensors.
    pub fn find(dir: impl Into<PathBuf>) -> Result<Weights> {
        let dir = dir.into();
        if let Some(file) = gguf::locate(&dir)? {
            return Ok(Weights::of_gguf(dir, Gguf::open(&file)?));
        }
        let files = if files::is_file(&dir.join(SINGLE)) {
            vec![TensorFile::open(dir.join(SINGLE))?]
        } else if files::is_file(&dir.join(INDEX)) {
            open_shards(&dir)?
        } else {
            vec![]
        };
        let tensors = collect(&files)?;
        Ok(Weights { dir, files, gguf: None, decoded: DType::F32, quantize: None, tensors })
    }

    fn of_gguf(dir: PathBuf, gguf: Gguf) -> Weights {
        let dtype = |name: &str| gguf.get(name).map_or(DType::F32, |view| view.dtype);
        let slot = |name: &str| Slot { file: 0, name: name.to_owned(), dtype: dtype(name), reordered: None };
        let tensors = gguf.names().map(|name| (name.to_owned(), slot(name))).collect();
        Weights { dir, files: vec![], gguf: Some(gguf), decoded: DType::F32, quantize: None, tensors }
    }

    /// Errors: the directory has no weights; says what it has instead.
    pub fn check_present(&self) -> Result<()> {
        if self.is_absent() { Err(nothing_found(&self.dir)) } else { Ok(()) }
    }

    /// Whether the directory has no weights.
    pub fn is_absent(&self) -> bool {
        self.files.is_empty() && self.gguf.is_none()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let slot = self.tensors.get(name)?;
        let view = match &self.gguf {
            Some(gguf) => gguf.get(&slot.name)?,
            None => {
                let raw = self.files[slot.file].get(&slot.name)?;
                TensorView::new(slot.dtype, raw.shape, raw.bytes)
            }
        };
        let view = match &slot.reordered {
            Some((dtype, bytes)) => TensorView::new(*dtype, view.shape, bytes),
            None => view,
        };
        let blocks = self.quantize.and_then(|quantize| quantize.of(name, view.shape));
        let view = blocks.map_or(view, |blocks| view.rounded_to(blocks));
        Some(view.decoded_as(self.decoded))
    }

    /// Sets the float type to which values stored in blocks are decoded; f32 by default.
    pub fn decode_as(&mut self, dtype: DType) {
        self.decoded = dtype;
    }

    /// Rounds matrices that are stored as floats to blocks from now on.
    pub fn quantize(&mut self, quantize: Option<Quantize>) {
        self.quantize = quantize;
    }

    /// Releases the memory of a tensor that was read; it is read again when needed.
    pub fn forget(&self, name: &str) {
        match (self.tensors.get(name), &self.gguf) {
            (Some(slot), Some(gguf)) => gguf.forget(&slot.name),
            (Some(slot), None) => self.files[slot.file].forget(&slot.name),
            (None, _) => {}
        }
    }

    /// Removes a tensor, which something else replaces.
    pub fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Reorders the rows of a tensor: row i becomes the stored row `order[i]`.
    ///
    /// Errors: no such tensor or row.
    pub fn reorder_rows(&mut self, name: &str, order: &[usize]) -> Result<()> {
        let rows = self.get(name).and_then(|view| {
            let width = view.shape.iter().skip(1).product::<usize>();
            let rows = order.iter().map(|&row| view.part(row * width..(row + 1) * width));
            Some((view.dtype, rows.collect::<Option<Vec<_>>>()?.concat()))
        });
        match (self.tensors.get_mut(name), rows) {
            (Some(slot), Some(rows)) => slot.reordered = Some(rows),
            _ => return Err(Error::Weights(format!("{}: {name} has no rows {order:?}", self.dir.display()))),
        }
        Ok(())
    }

    /// The name of a tensor in the files.
    pub fn stored_name(&self, name: &str) -> Option<&str> {
        let slot = self.tensors.get(name)?;
        match &self.gguf {
            Some(gguf) => gguf.place(&slot.name).map(|(name, _)| name),
            None => Some(&slot.name),
        }
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        let slot = self.tensors.get(name)?;
        match &self.gguf {
            Some(gguf) => gguf.place(&slot.name).map(|(_, path)| path),
            None => self.files.get(slot.file).map(TensorFile::path),
        }
    }

    /// Size of all values in bytes.
    pub fn bytes(&self) -> u64 {
        self.names().filter_map(|name| self.get(name)).map(|t| t.size() as u64).sum()
    }
}

impl WeightSource for Weights {
    fn origin(&self) -> String {
        self.dir.display().to_string()
    }

    fn names(&self) -> Vec<&str> {
        self.names().collect()
    }

    fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.get(name)
    }

    fn forget(&self, name: &str) {
        self.forget(name);
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the files of an index, checked against it.
fn open_shards(dir: &Path) -> Result<Vec<TensorFile>> {
    let path = dir.join(INDEX);
    let error = |what: String| Error::Weights(format!("{}: {what}", path.display()));
    let text = files::read(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| error(format!("not an index of safetensors files: {e}")))?;
    if index.weight_map.is_empty() {
        return Err(error("`weight_map` lists no tensor".into()));
    }

    let mut files: BTreeMap<&str, TensorFile> = BTreeMap::new();
    for (tensor, name) in &index.weight_map {
        if files.contains_key(name.as_str()) {
            continue;
        }
        if !is_plain_file_name(name) {
            return Err(error(format!(
                "the index puts tensor `{tensor}` in {name:?}; only .safetensors files in the same directory \
                 are allowed"
            )));
        }
        let file = dir.join(name);
        if !files::is_file(&file) {
            return Err(error(format!(
                "the index puts tensor `{tensor}` in {name}, which is missing; download this file"
            )));
        }
        files.insert(name, TensorFile::open(file)?);
    }
    for (tensor, name) in &index.weight_map {
        if files[name.as_str()].get(tensor).is_some() {
            continue;
        }
        let elsewhere = files.iter().find(|(_, file)| file.get(tensor).is_some());
        return Err(error(match elsewhere {
            Some((other, _)) => {
                format!("the index puts tensor `{tensor}` in {name}, but it is in {other}")
            }
            None => format!("the index puts tensor `{tensor}` in {name}, but it is in no file"),
        }));
    }
    Ok(files.into_values().collect())
}

/// Whether a name has a single component, so that a downloaded index cannot make us read elsewhere. Links are followed,
/// as the hub's cache is made of them.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(part)) if part == name)
        && parts.next().is_none()
        && !name.contains('\\')
        && name.ends_with(".safetensors")
}

fn collect(files: &[TensorFile]) -> Result<BTreeMap<String, Slot>> {
    let all = || files.iter().flat_map(TensorFile::names);
    let bare = !all().any(|name| of_text(name).starts_with("model."));
    let mut tensors: BTreeMap<String, Slot> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        for name in file.names() {
            let Some(view) = file.get(name) else { continue };
            let error = |what: String| Error::Weights(format!("{}: {what}", file.path().display()));
            let dtype = weight_dtype(view.dtype).ok_or_else(|| {
                error(format!(
                    "tensor `{name}` has dtype {:?}; supported are F32, BF16 and F16. Quantized checkpoints cannot be \
                     trained: use the original model, or convert the file",
                    view.dtype
                ))
            })?;
            let text = of_text(name);
            let is_head = text.starts_with("lm_head.") || text.starts_with("score.");
            let canonical = if bare && !is_head { format!("model.{text}") } else { text.into_owned() };
            let slot = Slot { file: i, name: name.to_string(), dtype, reordered: None };
            if let Some(first) = tensors.insert(canonical, slot) {
                return Err(error(format!(
                    "tensor `{name}` is also in {}; every tensor must be in one file",
                    files[first.file].path().display()
                )));
            }
        }
    }
    Ok(tensors)
}

/// A name as in a text model: the text part of a multimodal model is under `language_model`, both in published
/// checkpoints and in transformers' modules.
fn of_text(name: &str) -> Cow<'_, str> {
    for inside in ["language_model.model.", "model.language_model."] {
        if let Some(rest) = name.strip_prefix(inside) {
            return Cow::Owned(format!("model.{rest}"));
        }
    }
    Cow::Borrowed(name.strip_prefix("language_model.").unwrap_or(name))
}

fn weight_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

/// The error for missing weights; says what is there instead.
fn nothing_found(dir: &Path) -> Error {
    let entries = match files::list(dir) {
        Ok(entries) => entries,
        Err(source) => return Error::io(dir)(source),
    };
    let names: Vec<String> =
        entries.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
    let ending = |end: &[&str]| names.iter().find(|name| end.iter().any(|e| name.ends_with(e)));
    let hint = if let Some(name) = ending(&[".safetensors"]) {
        format!("there is {name}, but a model is {SINGLE}, or shards with {INDEX}; is the index missing?")
    } else if let Some(name) = ending(&[".bin", ".pt", ".pth"]) {
        format!(
            "there is {name}, a pickle, which can run code when read and is never opened. Convert it: in Python, \
             `AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out, safe_serialization=True)`"
        )
    } else if let Some(name) = ending(&[".gguf"]) {
        format!("there is {name}, which is a complete model: give the path of this file")
    } else {
        format!("the directory has {} other entries", names.len())
    };
    Error::Weights(format!("{}: no {SINGLE} and no {INDEX} here: {hint}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::super::{OutTensor, save};
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn shard(dir: &TempDir, file: &str, tensors: &[(&str, Dtype)]) {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, dtype)| OutTensor {
                name: name.to_string(),
                dtype: *dtype,
                shape: vec![1],
                bytes: vec![0; dtype.bitsize() / 8].into(),
            })
            .collect();
        save(&dir.path().join(file), &tensors, &BTreeMap::new()).unwrap();
    }

    fn index(dir: &TempDir, map: &[(&str, &str)]) {
        let map: BTreeMap<_, _> = map.iter().copied().collect();
        let json = serde_json::json!({"metadata": {"total_size": 8}, "weight_map": map});
        fs::write(dir.path().join(INDEX), json.to_string()).unwrap();
    }

    fn error(dir: &TempDir, parts: &[&str]) {
        let text = Weights::open(dir.path()).unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }

    #[test]
    fn shards_are_one_model() {
        let dir = tempfile::tempdir().unwrap();
        shard(&dir, "1.safetensors", &[("model.a", Dtype::BF16), ("model.c", Dtype::F32)]);
        shard(&dir, "2.safetensors", &[("model.b", Dtype::F16)]);
        index(&dir, &[("model.a", "1.safetensors"), ("model.b", "2.safetensors"), ("model.c", "1.safetensors")]);
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.a", "model.b", "model.c"]);
        assert_eq!(weights.get("model.b").unwrap().dtype, DType::F16);
        assert_eq!(weights.get("model.a").unwrap().size(), 2);
        assert!(weights.file_of("model.b").unwrap().ends_with("2.safetensors"));
        assert_eq!(weights.bytes(), 8);
        assert!(weights.get("a").is_none());
    }

    #[test]
    fn a_bare_backbone_gets_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        shard(&dir, SINGLE, &[("embed_tokens.weight", Dtype::F32), ("score.weight", Dtype::F32)]);
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.embed_tokens.weight", "score.weight"]);
        assert!(weights.get("model.embed_tokens.weight").is_some());
    }

    #[test]
    fn the_text_part_of_a_larger_model_is_a_model() {
        for (text, images) in [
            ("language_model.model.a", "vision_tower.b"),
            ("model.language_model.a", "model.vision_tower.b"),
            ("language_model.a", "vision_tower.b"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            shard(
                &dir,
                SINGLE,
                &[(text, Dtype::F32), (images, Dtype::F32), ("language_model.lm_head.weight", Dtype::F32)],
            );
            let weights = Weights::open(dir.path()).unwrap();
            let names: Vec<_> = weights.names().collect();
            assert_eq!(names.len(), 3);
            assert!(names.contains(&"model.a") && names.contains(&"lm_head.weight"), "{names:?}");
            assert!(names.iter().any(|name| name.ends_with("vision_tower.b")), "{names:?}");
        }
    }

    #[test]
    fn an_index_that_disagrees_with_its_shards_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        shard(&dir, "1.safetensors", &[("model.a", Dtype::F32)]);
        shard(&dir, "2.safetensors", &[("model.b", Dtype::F32)]);
        index(&dir, &[("model.a", "3.safetensors")]);
        error(&dir, &["index.json", "`model.a`", "3.safetensors", "missing"]);
        index(&dir, &[("model.a", "2.safetensors"), ("model.b", "1.safetensors")]);
        error(&dir, &["`model.a`", "2.safetensors", "is in 1.safetensors"]);
        index(&dir, &[("model.a", "1.safetensors"), ("model.z", "1.safetensors")]);
        error(&dir, &["`model.z`", "in no file"]);
        index(&dir, &[]);
        error(&dir, &["lists no tensor"]);
        fs::write(dir.path().join(INDEX), "{\"weight_map\": 3}").unwrap();
        error(&dir, &["index.json", "not an index"]);
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        shard(&dir, "1.safetensors", &[("model.a", Dtype::F32)]);
        shard(&dir, "2.safetensors", &[("model.a", Dtype::F32), ("model.b", Dtype::F32)]);
        index(&dir, &[("model.a", "1.safetensors"), ("model.b", "2.safetensors")]);
        error(&dir, &["2.safetensors", "`model.a`", "also in", "1.safetensors"]);
    }

    #[test]
    fn an_index_cannot_point_elsewhere() {
        for name in ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin", "a\\b.safetensors"]
        {
            let dir = tempfile::tempdir().unwrap();
            index(&dir, &[("model.a", name)]);
            error(&dir, &["`model.a`", "same directory"]);
        }
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = |name: &str, bytes: [u8; 4]| OutTensor {
            name: name.into(),
            dtype: Dtype::BF16,
            shape: vec![2],
            bytes: bytes.to_vec().into(),
        };
        let tensors = [tensor("model.a", [0, 0, 0xff, 0x7f]), tensor("model.b", [0, 0, 0, 0])];
        save(&dir.path().join(SINGLE), &tensors, &BTreeMap::new()).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert!(weights.finite("model.b").is_ok());
        let text = weights.finite("model.a").unwrap_err().to_string();
        assert!(text.contains("model.a holds NaN or infinity at 1"), "{text}");
        assert!(weights.finite("model.c").is_err());
    }

    #[test]
    fn unsupported_types_are_named() {
        let dir = tempfile::tempdir().unwrap();
        shard(&dir, SINGLE, &[("model.a", Dtype::I8)]);
        error(&dir, &["model.safetensors", "`model.a`", "I8", "F32, BF16 and F16"]);
    }

    #[test]
    fn an_error_says_what_is_there_instead() {
        let dir = tempfile::tempdir().unwrap();
        error(&dir, &["no model.safetensors", "0 other entries"]);
        fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
        error(&dir, &["pytorch_model.bin", "pickle", "save_pretrained"]);
        fs::write(dir.path().join("model-00001-of-00002.safetensors"), "").unwrap();
        error(&dir, &["model-00001-of-00002.safetensors", "index missing"]);
        let text = Weights::open("/nonexistent").unwrap_err().to_string();
        assert!(text.contains("/nonexistent"), "{text}");
    }
}
