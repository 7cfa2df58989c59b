//! Directories with good files, one of which takes the bytes that are read.

use serde_json::{Value, json};
use sparta_core::decoder;
use sparta_core::model::HeadKind;
use sparta_core::weights::{Dtype, OutTensor, save};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;

thread_local! {
    static PLACES: RefCell<BTreeMap<&'static str, Rc<TempDir>>> = RefCell::default();
}

/// The directory of this name; `fill` puts the good files there when it is made. It ends with the thread.
pub fn place(name: &'static str, fill: impl FnOnce(&Path)) -> PathBuf {
    let known = PLACES.with_borrow(|places| places.get(name).map(|dir| dir.path().to_owned()));
    known.unwrap_or_else(|| {
        let dir = Rc::new(tempfile::tempdir().expect("a directory for temporary files"));
        fill(dir.path());
        PLACES.with_borrow_mut(|places| places.insert(name, dir.clone()));
        dir.path().to_owned()
    })
}

/// Writes a file of a place, a new one: ext4 waits for the disk when an old one is cut to nothing and written again.
pub fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    // It may not be there yet.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).expect("a file in the directory for temporary files");
}

pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 8,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "id2label": {"0": "no", "1": "yes"}
    })
}

pub fn tokenizer() -> Value {
    let words = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c", "good", "bad", "film"];
    let vocab: BTreeMap<&str, usize> = words.iter().copied().zip(0..).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab}
    })
}

pub fn tokenizer_config() -> Value {
    json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "add_eos_token": false, "bos_token": "<s>",
           "eos_token": {"content": "</s>"}, "pad_token": "<pad>"})
}

/// A tiny Llama with a tokenizer.
pub fn model(dir: &Path) {
    put(dir, "config.json", config().to_string());
    put(dir, "tokenizer.json", tokenizer().to_string());
    put(dir, "tokenizer_config.json", tokenizer_config().to_string());
    let decoder = decoder::open(dir).expect("the configuration is good");
    let parameters = decoder.parameters(HeadKind::Classification { classes: 2 });
    let tensors: Vec<OutTensor> = parameters
        .iter()
        .map(|p| {
            let values: Vec<f32> = (0..p.numel()).map(|i| (i % 7) as f32 / 8.0 - 0.375).collect();
            tensor(&p.name, Dtype::F32, &p.shape, bytemuck::cast_slice(&values))
        })
        .collect();
    put(dir, "model.safetensors", file(&tensors));
}

pub fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> OutTensor<'static> {
    OutTensor { name: name.into(), dtype, shape: shape.to_vec(), bytes: bytes.to_vec().into() }
}

/// The bytes of a safetensors file.
pub fn file(tensors: &[OutTensor]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory for temporary files");
    let path = dir.path().join("x.safetensors");
    save(&path, tensors, &BTreeMap::new()).expect("the tensors are good");
    fs::read(path).expect("it was written")
}
