//! What llama.cpp computes from the files that are written. Weights, keys and values are f32 on both sides.

use super::{base, cpu, language_model, open};
use serde_json::{Value, json};
use sparta_core::adapter::{AppliedAdapter, ExportFormat, MergeDtype, MergeRequest, export, merge};
use sparta_core::train::Encoded;
use sparta_core::weights::{OutTensor, TensorFile, save};
use sparta_graph::DType;
use sparta_tests::llama::{Files, Llama, largest_difference, log_softmax};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TOKENS: [u32; 15] = [1, 17, 250, 33, 4, 5, 61, 100, 99, 230, 12, 13, 7, 8, 9];

/// Tokens of the golden models.
const VOCABULARY: usize = 300;

/// Logarithms of probabilities of about -10, from sums in a different order.
const ROUNDING: f64 = 1e-4;

/// As [`ROUNDING`], where llama.cpp takes GELU from a table of f16, whose entries are off by up to a 2048th.
const ROUNDING_OF_GELU: f64 = 5e-3;

fn rounding(family: &str) -> f64 {
    if family.starts_with("gemma") { ROUNDING_OF_GELU } else { ROUNDING }
}

/// A golden model as a language model, with settings that GGUF has a place for.
fn language_base(family: &str) -> TempDir {
    let dir = base(family);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let class = config["architectures"][0].as_str().unwrap();
    let class = class.replace("ForSequenceClassification", "ForCausalLM").replace("Gemma3Text", "Gemma3");
    config["architectures"] = json!([class]);
    config["tie_word_embeddings"] = json!(true);
    for (token, id) in [("pad", 0), ("bos", 1), ("eos", 2)] {
        config[format!("{token}_token_id")] = json!(id);
    }
    match family {
        "gemma2" | "gemma3" => config["query_pre_attn_scalar"] = config["head_dim"].clone(),
        _ => config["sliding_window"] = Value::Null,
    }
    match family {
        // One layer in six is global.
        "gemma3" => config["layer_types"] = json!(["sliding_attention", "sliding_attention"]),
        // One in four has no rotations.
        "smollm3" => (config["no_rope_layers"], config["no_rope_layer_interval"]) = (json!([1, 1]), json!(4)),
        "phi3" => {
            config["rope_parameters"] =
                json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75});
        }
        "mistral" => drop(config.as_object_mut().unwrap().remove("layer_types")),
        _ => {}
    }
    fs::write(path, config.to_string()).unwrap();
    without_head(&dir.path().join("model.safetensors"));
    dir
}

fn without_head(path: &Path) {
    let tensors: Vec<OutTensor> = {
        let file = TensorFile::open(path).unwrap();
        let names = file.names().filter(|name| *name != "score.weight");
        let owned = names.map(|name| {
            let view = file.get(name).unwrap();
            let bytes = view.bytes.to_vec().into();
            OutTensor { name: name.into(), dtype: view.dtype, shape: view.shape.to_vec(), bytes }
        });
        owned.collect()
    };
    save(path, &tensors, &BTreeMap::new()).unwrap();
}

fn written(applied: &AppliedAdapter, out: PathBuf) -> PathBuf {
    let request = MergeRequest { out: out.clone(), dtype: MergeDtype::To(DType::F32), shard_bytes: 1 << 30 };
    merge(applied, &request, cpu()).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    out
}

fn next(applied: &AppliedAdapter) -> Vec<f32> {
    applied.generation(cpu(), 64).unwrap().decode(&TOKENS, 0).unwrap()
}

#[test]
fn llama_cpp_reads_all_families() {
    let Some(llama) = Llama::find() else { return };
    for family in ["llama", "mistral", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "phi3", "smollm3"] {
        let base = language_base(family);
        let applied = open(base.path(), None);
        let file = written(&applied, base.path().join("model.gguf"));
        let found = llama.next(Files::model(&file), &TOKENS[..], VOCABULARY);
        let difference = largest_difference(&found, &next(&applied));
        assert!(found.len() == VOCABULARY && difference <= rounding(family), "{family}: {difference:e}");
    }
}

#[test]
fn llama_cpp_adds_lora_layers() {
    let Some(llama) = Llama::find() else { return };
    for family in ["mistral", "gemma"] {
        let base = language_base(family);
        let file = written(&open(base.path(), None), base.path().join("model.gguf"));
        let applied = open(&language_model(family, base.path()), Some(base.path()));
        let lora = base.path().join("lora.gguf");
        export(&applied, ExportFormat::Gguf, &lora).unwrap();
        let [without, with] =
            [None, Some(lora.as_path())].map(|lora| llama.next(Files { model: &file, lora }, &TOKENS[..], VOCABULARY));
        let expected = next(&applied);
        let difference = largest_difference(&with, &expected);
        assert!(difference <= rounding(family), "{family}: {difference:e}");
        assert!(
            largest_difference(&without, &expected) > 10.0 * rounding(family),
            "{family}: the layers change nothing"
        );
    }
}

/// Of the families here, llama.cpp has classifiers for Qwen 3, whose outputs are probabilities.
#[test]
fn llama_cpp_classifies() {
    let Some(llama) = Llama::find() else { return };
    let base = base("qwen3");
    let applied = open(base.path(), None);
    let file = written(&applied, base.path().join("model.gguf"));
    let mut session = applied.session(cpu(), 64, TOKENS.len()).unwrap();
    let batch = session.setup().objective.pack(&[Encoded::class(TOKENS.to_vec(), 0)]).unwrap();
    let expected = log_softmax(&session.evaluate(&batch).unwrap().0);
    let found = llama.classes(Files::model(&file), &TOKENS, expected.len());
    assert_eq!(found.len(), 3);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected.exp()).abs() <= ROUNDING, "{found}, expected {}", expected.exp());
    }
}
