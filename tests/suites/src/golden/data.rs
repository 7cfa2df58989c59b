//! Where golden numbers come from, and how they are compared.

use super::distance::Distance;
use super::embedded;
use serde_json::Value as Json;
use sparta_core::weights::{Dtype, OutTensor, TensorFile, save};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub const FAMILIES: [&str; 9] = ["gemma", "gemma2", "gemma3", "mistral", "llama", "smollm3", "phi3", "qwen2", "qwen3"];

/// A set of golden data.
pub struct Source {
    pub name: &'static str,
    root: PathBuf,
    layout: SourceLayout,
    /// Deletes the files of the compact set.
    _unpacked: Option<TempDir>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceLayout {
    /// Weights in bf16, long tensors thinned.
    Compact,
    /// Complete numbers, in f32.
    Full,
}

impl Source {
    /// The set that is part of this program.
    pub fn compact() -> Source {
        let directory = tempfile::tempdir().expect("a temporary directory");
        embedded::unpack(directory.path()).expect("the golden data is written to a temporary directory");
        let root = directory.path().to_owned();
        Source { name: "compact", root, layout: SourceLayout::Compact, _unpacked: Some(directory) }
    }

    /// The complete set in this directory.
    pub fn full(root: PathBuf) -> Source {
        Source { name: "full", root, layout: SourceLayout::Full, _unpacked: None }
    }

    /// Whether the set has this family: a complete one may be older than this program.
    pub fn has(&self, family: &str) -> bool {
        self.root.join(family).is_dir()
    }

    pub fn batch(&self, family: &str) -> PathBuf {
        self.root.join(family).join("batch.safetensors")
    }

    /// Results of the classifier, or of the language model: `logits`, `loss`, `grad.<name>`, `last_hidden_state`.
    pub fn expected(&self, family: &str, lm: bool) -> Golden {
        let root = self.root.join(family);
        match (self.layout, lm) {
            (SourceLayout::Compact, false) => Golden::open(&[("", root.join("cls.safetensors"))]),
            (SourceLayout::Compact, true) => Golden::open(&[("", root.join("lm.safetensors"))]),
            (SourceLayout::Full, _) => {
                let root = if lm { root.join("causal_lm") } else { root };
                Golden::open(&[("", root.join("expected.safetensors")), ("grad.", root.join("grads.safetensors"))])
            }
        }
    }

    /// Conversations, what TRL makes of them, and the files of their tokenizer; the complete set has none.
    pub fn answers(&self) -> [PathBuf; 4] {
        let root = self.root.join("sft");
        ["train.jsonl", "trl.json", "tokenizer.json", "tokenizer_config.json"].map(|file| root.join(file))
    }

    /// Batches, start and results of the trajectories, named as in the compact set.
    pub fn trajectories(&self, family: &str) -> Golden {
        let root = self.root.join(family);
        if self.layout == SourceLayout::Compact {
            return Golden::open(&[("", root.join("train.safetensors"))]);
        }
        let train = root.join("train");
        let mut files = vec![
            ("stream.".to_owned(), train.join("stream.safetensors")),
            ("indices.".to_owned(), train.join("sparta_indices.safetensors")),
            ("lora.init.".to_owned(), train.join("lora/init.safetensors")),
        ];
        for method in ["full", "lora", "head", "sparta_adam", "sparta_adamw"] {
            for (part, file) in [("final", "final"), ("grad", "step1_grads")] {
                files.push((format!("{method}.{part}."), train.join(format!("{method}/{file}.safetensors"))));
            }
        }
        files.retain(|(_, path)| path.exists());
        let files: Vec<(&str, PathBuf)> = files.iter().map(|(prefix, path)| (prefix.as_str(), path.clone())).collect();
        Golden::open(&files)
    }

    /// Rates, losses, norms and clip factors of each step of a method, and the logits after training.
    pub fn log(&self, family: &str, method: &str) -> Json {
        let root = self.root.join(family);
        let read = |path: &Path| -> Json {
            let text = fs::read_to_string(path).expect("the log");
            serde_json::from_str(&text).expect("JSON")
        };
        if self.layout == SourceLayout::Compact {
            return read(&root.join("train.json"))[method].clone();
        }
        let full = read(&root.join("train").join(method).join("log.json"));
        let mut log = full["optimizer"].clone();
        log["eval_logits_after"] = full["eval_logits_after"].clone();
        for key in ["loss", "grad_norm", "clip_coef"] {
            let steps = full["steps"].as_array().expect("steps");
            log[key] = steps.iter().map(|step| step[key].clone()).collect();
        }
        log
    }
}

/// How a model directory is laid out.
#[derive(Clone, Copy)]
pub struct Layout {
    pub lm: bool,
    /// Weights in f32, whatever the source holds; else as they are.
    pub f32: bool,
    /// `config.json` in the layout of transformers 4.
    pub version_4: bool,
}

/// A directory with `config.json` and `model.safetensors`.
pub fn model_directory(source: &Source, family: &str, layout: Layout) -> TempDir {
    let root = source.root.join(family);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = root.join(if layout.version_4 { "config.v4.json" } else { "config.json" });
    let mut config = fs::read_to_string(config).expect("the configuration");
    let mut files = vec![root.join("model.safetensors")];
    if layout.lm {
        for class in ["TextForSequenceClassification", "ForSequenceClassification"] {
            config = config.replace(class, "ForCausalLM");
        }
        let head = match source.layout {
            SourceLayout::Compact => root.join("lm_head.safetensors"),
            SourceLayout::Full => root.join("causal_lm/model.safetensors"),
        };
        files.extend(Some(head).filter(|path| path.exists()));
    }
    let files: Vec<TensorFile> = files.into_iter().map(|path| TensorFile::open(path).expect("weights")).collect();
    let mut tensors = BTreeMap::new();
    for file in &files {
        for name in file.names().filter(|name| !layout.lm || *name != "score.weight") {
            let view = file.get(name).expect("a tensor that is listed");
            let bytes: Cow<[u8]> = if layout.f32 {
                let values = file.floats(name).expect("floats").1;
                Cow::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect())
            } else {
                Cow::Borrowed(view.bytes)
            };
            let dtype = if layout.f32 { Dtype::F32 } else { view.dtype };
            let tensor = OutTensor { name: name.to_owned(), dtype, shape: view.shape.to_vec(), bytes };
            tensors.insert(name.to_owned(), tensor);
        }
    }
    let tensors: Vec<OutTensor> = tensors.into_values().collect();
    save(&directory.path().join("model.safetensors"), &tensors, &BTreeMap::new()).expect("weights are written");
    fs::write(directory.path().join("config.json"), config).expect("the configuration is written");
    directory
}

/// Golden tensors of several files, each with a prefix to its names.
pub struct Golden(Vec<(String, TensorFile)>);

/// What a tensor should be: all of it, or every n-th element and the norm of all.
pub struct Expectation {
    pub name: String,
    pub stride: usize,
    pub values: Vec<f32>,
    pub norm: Option<f32>,
}

impl Golden {
    fn open(files: &[(&str, PathBuf)]) -> Self {
        let open = |(prefix, path): &(&str, PathBuf)| {
            (prefix.to_string(), TensorFile::open(path).unwrap_or_else(|e| panic!("{e}")))
        };
        Golden(files.iter().map(open).collect())
    }

    fn find(&self, name: &str) -> Option<(&TensorFile, String)> {
        self.0.iter().find_map(|(prefix, file)| {
            let inner = name.strip_prefix(prefix.as_str())?;
            file.get(inner).map(|_| (file, inner.to_owned()))
        })
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let (file, inner) = self.find(name).unwrap_or_else(|| panic!("no golden tensor `{name}`"));
        file.floats(&inner).unwrap_or_else(|e| panic!("{e}")).1
    }

    pub fn integers(&self, name: &str) -> Vec<i64> {
        let (file, inner) = self.find(name).unwrap_or_else(|| panic!("no golden tensor `{name}`"));
        file.integers(&inner).unwrap_or_else(|e| panic!("{e}")).1
    }

    pub fn names(&self) -> impl Iterator<Item = String> {
        self.0.iter().flat_map(|(prefix, file)| file.names().map(move |name| format!("{prefix}{name}")))
    }

    /// Expectations of all tensors whose names begin with `prefix`, which is cut off.
    pub fn expectations(&self, prefix: &str) -> Vec<Expectation> {
        let mut found = vec![];
        for stored in self.names() {
            let (stride, name) = match stored.strip_prefix("every").and_then(|rest| rest.split_once('.')) {
                Some((stride, name)) => (stride.parse().expect("a stride"), name),
                None => (1, stored.as_str()),
            };
            if let Some(short) = name.strip_prefix(prefix) {
                let norm = (stride > 1).then(|| self.floats(&format!("norm.{name}"))[0]);
                found.push(Expectation { name: short.to_owned(), stride, values: self.floats(&stored), norm });
            }
        }
        assert!(!found.is_empty(), "no golden tensors `{prefix}...`");
        found
    }
}

pub fn norm(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

pub fn difference(a: f32, b: f32) -> f64 {
    (f64::from(a) - f64::from(b)).abs()
}

impl Expectation {
    /// Pairs (got, expected) of the elements that are known.
    pub fn pairs<'a>(&'a self, got: &'a [f32]) -> impl Iterator<Item = (f32, f32)> + 'a {
        assert_eq!(got.len().div_ceil(self.stride), self.values.len(), "elements of {}", self.name);
        got.iter().step_by(self.stride).copied().zip(self.values.iter().copied())
    }

    /// How far the values are off: the largest difference of an element, and the relative L2 distance.
    pub fn distances(&self, what: &str, got: &[f32], max: f64, relative: f64) -> [Distance; 2] {
        let worst = self.pairs(got).map(|(a, b)| difference(a, b)).fold(0.0, nan_max);
        // A gradient may be exactly zero: that of the first factor of LoRA, whose second one starts at zero.
        let size = Some(norm(self.values.iter().copied())).filter(|&size| size > 0.0).unwrap_or(1.0);
        let distance = norm(self.pairs(got).map(|(a, b)| a - b)) / size;
        let norm_off = self.norm.map_or(0.0, |expected| (norm(got.iter().copied()) / f64::from(expected) - 1.0).abs());
        let name = &self.name;
        [
            Distance::new(format!("{what} of {name}"), worst, max),
            Distance::new(format!("{what} of {name}, relative L2"), nan_max(distance, norm_off), relative),
        ]
    }
}

/// The larger number, NaN if either is.
pub fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}
