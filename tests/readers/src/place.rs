//! Directories of good files, one of which is replaced by the bytes to read.

use serde_json::{Value, json};
use sparta_core::decoder;
use sparta_core::gguf::{Field, TensorOut, save as save_gguf};
use sparta_core::model::{HeadKind, Storage};
use sparta_core::weights::{Dtype, OutTensor, save};
use sparta_graph::{Blocks, DType};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;

thread_local! {
    static PLACES: RefCell<BTreeMap<&'static str, Rc<TempDir>>> = RefCell::default();
}

/// The directory of this name, which lasts as long as the thread; `fill` writes the good files when it is created.
pub fn place(name: &'static str, fill: impl FnOnce(&Path)) -> PathBuf {
    let known = PLACES.with_borrow(|places| places.get(name).map(|dir| dir.path().to_owned()));
    known.unwrap_or_else(|| {
        let dir = Rc::new(tempfile::tempdir().expect("a directory for temporary files"));
        fill(dir.path());
        PLACES.with_borrow_mut(|places| places.insert(name, dir.clone()));
        dir.path().to_owned()
    })
}

/// Writes a file in such a directory, always a new one: ext4 waits for the disk when a file is truncated and rewritten.
pub fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    // It may not exist yet.
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

/// A tiny Llama in a GGUF file, with a tokenizer of this kind.
pub fn gguf(tokenizer: &str) -> Vec<u8> {
    let text = |text: &str| Field::Text(text.into());
    let texts = |all: &[&str]| Field::Texts(all.iter().map(|&text| text.into()).collect());
    let tokens = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "ab", "\u{120}"];
    let fields = [
        ("general.architecture", text("llama")),
        ("llama.context_length", Field::U32(64)),
        ("llama.embedding_length", Field::U32(32)),
        ("llama.block_count", Field::U32(1)),
        ("llama.feed_forward_length", Field::U32(32)),
        ("llama.attention.head_count", Field::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Field::F32(1e-5)),
        ("tokenizer.ggml.model", text(tokenizer)),
        ("tokenizer.ggml.pre", text("llama-bpe")),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.scores", Field::F32s((0..8).map(|i| -(i as f32)).collect())),
        ("tokenizer.ggml.token_type", Field::I32s(vec![2, 3, 3, 1, 1, 1, 1, 4])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        ("tokenizer.ggml.bos_token_id", Field::U32(1)),
        ("tokenizer.ggml.eos_token_id", Field::U32(2)),
        ("tokenizer.chat_template", text("{{ bos_token }}{{ messages[0].content }}")),
    ];
    let fields = fields.map(|(key, field)| (key.to_owned(), field)).to_vec();
    let (square, f32) = ([32usize, 32], Storage::Plain(DType::F32));
    let blocks = [Blocks::Q8_0, Blocks::Q4_0, Blocks::Q4_1, Blocks::Q5_0, Blocks::Q5_1].map(Storage::Blocks);
    let layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let matrices = layer.into_iter().zip(blocks.into_iter().cycle());
    let mut tensors: Vec<TensorOut> = ["attn_norm", "ffn_norm"]
        .map(|name| (name, f32, &square[..1]))
        .into_iter()
        .chain(matrices.map(|(name, stored)| (name, stored, &square[..])))
        .map(|(name, stored, shape)| TensorOut { name: format!("blk.0.{name}.weight"), stored, shape: shape.to_vec() })
        .collect();
    tensors.push(TensorOut {
        name: "token_embd.weight".into(),
        stored: Storage::Plain(DType::F16),
        shape: vec![8, 32],
    });
    tensors.push(TensorOut { name: "output_norm.weight".into(), stored: f32, shape: vec![32] });
    let mut file = Vec::new();
    let zeros = |tensor: &TensorOut| {
        let elements = tensor.shape.iter().product();
        Ok(vec![0; tensor.stored.bytes(elements).expect("a small tensor")])
    };
    save_gguf(&mut file, Path::new("x.gguf"), &fields, &tensors, zeros).expect("the tensors are good");
    file
}
