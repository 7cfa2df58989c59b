//! Adapters of every format, on a tiny model.

use crate::place::{self, place, put, tensor};
use serde_json::json;
use sparta_core::adapter::{self, AppliedAdapter};
use sparta_core::hash::{fingerprint, hash_file};
use sparta_core::plugin::PluginSet;
use sparta_core::weights::{Dtype, Weights};
use std::path::Path;

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

pub fn manifest(bytes: &[u8]) -> bool {
    let dir = place("adapter_manifest", |dir| {
        put(dir, "adapter.safetensors", values_file());
    });
    put(&dir, "adapter.json", bytes);
    adapter::load(&dir, None).is_ok()
}

pub fn good_manifest() -> Vec<Vec<u8>> {
    let dir = place("adapter_hash", |dir| put(dir, "adapter.safetensors", values_file()));
    let hash = hash_file(&dir.join("adapter.safetensors")).expect("it was written");
    let mut native: serde_json::Value =
        serde_json::from_str(include_str!("../seeds/adapter.json")).expect("the seed is JSON");
    native["values_sha256"] = hash.clone().into();
    vec![native.to_string().into(), combined(Path::new("model"), "", &hash).into()]
}

/// `adapter.json` of combined adapters.
fn combined(model: &Path, base: &str, values_sha256: &str) -> String {
    json!({
        "format": "sparta-combined/1", "strategy": {"name": "ties", "weights": [1.0, 0.5], "keep": 0.2},
        "model": model, "base": base, "heads": [{"name": "sst2", "labels": ["no", "yes"], "config": null}],
        "sources": ["a", "b"], "conflicts": [], "values_sha256": values_sha256
    })
    .to_string()
}

fn values_file() -> Vec<u8> {
    let floats = |n: usize| vec![0.5f32; n];
    place::file(&[
        tensor(&format!("index.{Q}"), Dtype::U32, &[3], bytemuck::cast_slice::<u32, u8>(&[0, 9, 63])),
        tensor(&format!("delta.{Q}"), Dtype::F32, &[3], bytemuck::cast_slice(&floats(3))),
        tensor("model.norm.weight", Dtype::F32, &[8], bytemuck::cast_slice(&floats(8))),
        tensor("score.weight", Dtype::F32, &[2, 8], bytemuck::cast_slice(&floats(16))),
    ])
}

/// The values of an adapter whose manifest has their hash.
pub fn values(bytes: &[u8]) -> bool {
    let dir = place("adapter_values", place::model);
    put(&dir, "adapter.safetensors", bytes);
    let hash = hash_file(&dir.join("adapter.safetensors")).expect("it was written");
    let weights = Weights::open(&dir).expect("the weights are good");
    put(&dir, "adapter.json", combined(&dir, &fingerprint(&weights), &hash));
    AppliedAdapter::open(&dir, None, &PluginSet::default()).is_ok()
}

pub fn good_values() -> Vec<Vec<u8>> {
    vec![values_file()]
}

pub fn peft_config(bytes: &[u8]) -> bool {
    let dir = place("peft_config", |dir| {
        place::model(dir);
        put(dir, "adapter_model.safetensors", peft_file());
    });
    put(&dir, "adapter_config.json", bytes);
    adapter::load(&dir, Some(&dir)).is_ok()
}

pub fn good_peft_config() -> Vec<Vec<u8>> {
    let plain = json!({"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4,
        "target_modules": ["q_proj"], "base_model_name_or_path": "model", "init_lora_weights": true});
    let mut patterns = plain.clone();
    patterns["alpha_pattern"] = json!({"layers\\.0\\.self_attn\\.q_proj": 8});
    patterns["use_rslora"] = true.into();
    vec![plain.to_string().into(), patterns.to_string().into()]
}

fn peft_file() -> Vec<u8> {
    let name = |end: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{end}.weight");
    place::file(&[
        tensor(&name("lora_A"), Dtype::F32, &[2, 8], bytemuck::cast_slice(&[0.25f32; 16])),
        tensor(&name("lora_B"), Dtype::F32, &[8, 2], bytemuck::cast_slice(&[0.25f32; 16])),
        tensor("base_model.model.score.weight", Dtype::F32, &[2, 8], bytemuck::cast_slice(&[0.5f32; 16])),
    ])
}

pub fn peft_values(bytes: &[u8]) -> bool {
    let elements = |kind: &str| json!({"peft_type": kind, "task_type": "SEQ_CLS"}).to_string().into_bytes();
    let configs = [
        ("peft_values", good_peft_config().swap_remove(1)),
        ("peft_supertuning", elements("SUPERTUNING")),
        ("peft_shira", elements("SHIRA")),
    ];
    let read = |(name, config): (&'static str, Vec<u8>)| {
        let dir = place(name, |dir| {
            place::model(dir);
            put(dir, "adapter_config.json", &config);
        });
        put(&dir, "adapter_model.safetensors", bytes);
        adapter::load(&dir, Some(&dir)).is_ok()
    };
    configs.map(read).contains(&true)
}

pub fn good_peft_values() -> Vec<Vec<u8>> {
    let name = |end: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{end}");
    let values = |end: &str| tensor(&name(end), Dtype::F32, &[3], bytemuck::cast_slice(&[0.25f32, -1.0, 0.0]));
    let head = || tensor("base_model.model.score.weight", Dtype::F32, &[2, 8], bytemuck::cast_slice(&[0.5f32; 16]));
    let indices = |end: &str, shape: &[usize], at: &[i32]| {
        tensor(&name(end), Dtype::I32, shape, bytemuck::cast_slice::<i32, u8>(at))
    };
    let flat = indices("supertuning_indices", &[3], &[9, 2, 0]);
    let places = indices("shira_indices", &[2, 3], &[0, 1, 7, 3, 0, 7]);
    vec![
        peft_file(),
        place::file(&[flat, values("supertuning_values"), head()]),
        place::file(&[places, values("shira_weight"), head()]),
    ]
}

pub fn sparse_deltas(bytes: &[u8]) -> bool {
    let dir = place("sparse_deltas", |dir| {
        place::model(dir);
        put(dir, "head_init.safetensors", place::file(&[tensor("head", Dtype::F32, &[2, 8], &[0; 64])]));
    });
    put(&dir, "sparse_deltas.safetensors", bytes);
    AppliedAdapter::open(&dir, Some(&dir), &PluginSet::default()).is_ok()
}

pub fn good_deltas() -> Vec<Vec<u8>> {
    let indices = |name: &str, shape: &[usize], values: &[i32]| {
        tensor(&format!("indices.{name}"), Dtype::I32, shape, bytemuck::cast_slice::<i32, u8>(values))
    };
    let deltas = |name: &str, n: usize| {
        tensor(&format!("deltas.{name}"), Dtype::F32, &[n], bytemuck::cast_slice(&vec![0.5f32; n]))
    };
    let head = [indices("score.weight", &[2, 2], &[0, 1, 1, 7]), deltas("score.weight", 2)];
    let matrix = [indices(Q, &[2, 2], &[0, 3, 7, 7]), deltas(Q, 2)];
    let flat = [indices("model.norm.weight", &[1], &[5]), deltas("model.norm.weight", 1)];
    vec![place::file(&[&head[..], &matrix, &flat].concat()), place::file(&[&head[..], &flat].concat())]
}
