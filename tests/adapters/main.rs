//! Adapters: PEFT's LoRA directories compared with the golden numbers of PEFT itself, merging, the formats of other tools,
//! and combinations of several adapters. Needs `cargo build --release` first, for the runs of `runs`.

mod runs;

use serde_json::Value;
use sparta_core::adapter::{AppliedAdapter, ExportFormat, MergeDtype, MergeRequest, export, merge};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::train::Encoded;
use sparta_core::weights::{Dtype, OutTensor, TensorFile, Weights, save};
use sparta_graph::{Backend, DType};
use sparta_tests::command::binary;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const FAMILIES: [&str; 4] = ["gemma", "mistral", "gemma3", "phi3"];

fn cpu() -> Box<dyn Backend> {
    Box::new(sparta_backend_cpu::Cpu::new(None).unwrap_or_else(|e| panic!("{e}")))
}

/// `None` on a machine without an adapter, which is an error in CI.
fn wgpu() -> Option<Box<dyn Backend>> {
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        return None;
    }
    Some(Box::new(sparta_wgpu::WgpuBackend::open("wgpu").unwrap_or_else(|e| panic!("{e}"))))
}

/// The plugins that the build puts beside the binary.
static PLUGINS: LazyLock<PluginSet> = LazyLock::new(|| {
    let beside = binary().parent().map(Path::to_owned).into_iter().collect();
    PluginSet::discover(&DiscoverOptions { beside, ..DiscoverOptions::default() })
});

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(family)
}

fn open(adapter: &Path, family: &str) -> AppliedAdapter {
    AppliedAdapter::open(adapter, Some(&golden(family)), &PLUGINS).unwrap_or_else(|e| panic!("{e}"))
}

fn peft(family: &str) -> AppliedAdapter {
    open(&golden(family).join("peft_adapter"), family)
}

/// Logits of the golden static batch, row by row.
fn logits(applied: &AppliedAdapter, family: &str) -> Vec<f32> {
    logits_on(cpu(), applied, family)
}

fn logits_on(device: Box<dyn Backend>, applied: &AppliedAdapter, family: &str) -> Vec<f32> {
    let file = TensorFile::open(golden(family).join("batch.safetensors")).unwrap();
    let (shape, ids) = file.integers("input_ids").unwrap();
    let lengths = file.integers("lengths").unwrap().1;
    let rows = ids.chunks(shape[1]).zip(lengths);
    let examples: Vec<Encoded> =
        rows.map(|(row, n)| Encoded::class(row[..n as usize].iter().map(|&t| t as u32).collect(), 0)).collect();
    let mut session = applied.session(device, 64, shape[1]).unwrap();
    let batch = session.setup().objective.pack(&examples).unwrap();
    session.evaluate(&batch).unwrap().0
}

/// The logits of PEFT's model for the same batch after training.
fn golden_logits(family: &str) -> Vec<f32> {
    let text = fs::read_to_string(golden(family).join("train.json")).unwrap();
    let train: Value = serde_json::from_str(&text).unwrap();
    let rows = train["lora"]["eval_logits_after"].as_array().unwrap();
    rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap() as f32).collect()
}

#[track_caller]
fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest <= tolerance, "differ by {largest}, above {tolerance}");
}

fn merged(applied: &AppliedAdapter, dtype: MergeDtype, shard_bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("merged");
    let result = merge(applied, &MergeRequest { out: out.clone(), dtype, shard_bytes }, cpu());
    let result = result.unwrap_or_else(|e| panic!("{e}"));
    assert!(result.check.agrees(), "{}", result.check);
    (dir, out)
}

fn floats(weights: &Weights, name: &str) -> Vec<f32> {
    let view = weights.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    view.to_f32().unwrap()
}

#[test]
fn a_peft_adapter_gives_the_logits_of_peft() {
    for family in FAMILIES {
        close(&logits(&peft(family), family), &golden_logits(family), 5e-5);
    }
}

#[test]
fn a_merged_peft_adapter_is_peft_merged() {
    for family in FAMILIES {
        let applied = peft(family);
        let (_dir, out) = merged(&applied, MergeDtype::To(DType::F32), 1 << 30);
        let weights = Weights::open(&out).unwrap();
        close(&logits(&AppliedAdapter::open(&out, None, &PLUGINS).unwrap(), family), &golden_logits(family), 5e-5);
        // W0 + (alpha / r) B A, here in f64, with alpha 16 and r 8.
        let base = Weights::open(golden(family)).unwrap();
        for (parameter, a) in applied.adapter.values.iter().filter(|(name, _)| name.ends_with("lora_A")) {
            let module = parameter.strip_suffix(".lora_A").unwrap();
            let (name, b) = (format!("{module}.weight"), &applied.adapter.values[&format!("{module}.lora_B")]);
            let columns = base.get(&name).unwrap().shape[1];
            let product = |i: usize| -> f64 {
                let (row, column) = (i / columns, i % columns);
                (0..8).map(|r| f64::from(b[row * 8 + r]) * f64::from(a[r * columns + column])).sum()
            };
            let w0 = floats(&base, &name);
            let expected: Vec<f32> =
                w0.iter().enumerate().map(|(i, &w)| (f64::from(w) + 2.0 * product(i)) as f32).collect();
            close(&floats(&weights, &name), &expected, 1e-6);
        }
        // PEFT's own.
        let reference = format!("oracle/golden/{family}/train/lora/merged.safetensors");
        if let Some(path) = sparta_test_data::find(&reference) {
            let file = TensorFile::open(path).unwrap();
            file.names().for_each(|n| close(&floats(&weights, n), &file.floats(n).unwrap().1, 1e-6));
        }
    }
}

#[test]
fn adapters_are_used_and_merged_on_wgpu() {
    let Some(device) = wgpu() else { return };
    close(&logits_on(device, &peft("mistral"), "mistral"), &golden_logits("mistral"), 5e-5);
    let (Some(device), dir) = (wgpu(), tempfile::tempdir().unwrap()) else { return };
    let request = |name: &str| MergeRequest {
        out: dir.path().join(name),
        dtype: MergeDtype::To(DType::F32),
        shard_bytes: 1 << 30,
    };
    let [there, here] = [("wgpu", device), ("cpu", cpu())].map(|(name, device)| {
        let merged = merge(&peft("mistral"), &request(name), device).unwrap_or_else(|e| panic!("{e}"));
        assert!(merged.check.agrees(), "{}", merged.check);
        Weights::open(dir.path().join(name)).unwrap()
    });
    for name in here.names() {
        close(&floats(&there, name), &floats(&here, name), 1e-6);
    }
}

#[test]
fn a_merged_model_has_the_hugging_face_layout() {
    let (_dir, out) = merged(&peft("gemma"), MergeDtype::Keep, 100_000);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "GemmaForSequenceClassification");
    assert_eq!(config["id2label"]["2"], "LABEL_2");
    assert_eq!(config["label2id"]["LABEL_2"], 2);
    assert_eq!(config["dtype"], "bfloat16");
    let index: Value = serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    let weights = Weights::open(&out).unwrap();
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(weights.bytes()));
    assert!(index["weight_map"]["score.weight"].as_str().unwrap().starts_with("model-0000"));
    let base = Weights::open(golden("gemma")).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), base.names().collect::<Vec<_>>());
    for name in weights.names() {
        let (new, old) = (weights.get(name).unwrap(), base.get(name).unwrap());
        assert_eq!((new.dtype, new.shape), (DType::BF16, old.shape), "{name}");
        // Untouched tensors have the same bytes.
        assert_eq!(
            new.raw() == old.raw(),
            !name.contains("q_proj") && !name.contains("v_proj") && name != "score.weight"
        );
    }
    let again =
        merge(&peft("gemma"), &MergeRequest { out: out.clone(), dtype: MergeDtype::Keep, shard_bytes: 1 << 30 }, cpu());
    assert!(again.unwrap_err().to_string().contains("already exists"));
}

#[test]
fn an_export_for_peft_equals_what_peft_wrote() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("peft");
        export(&peft(family), ExportFormat::Peft, &out).unwrap();
        let read = |dir: &Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (read(&out), read(&golden(family).join("peft_adapter")));
        for (key, value) in ours.as_object().unwrap().iter().filter(|(key, _)| *key != "base_model_name_or_path") {
            assert_eq!(*value, theirs[key], "{key}");
        }
        let files = [&out, &golden(family).join("peft_adapter")]
            .map(|dir| TensorFile::open(dir.join("adapter_model.safetensors")).unwrap());
        assert_eq!(files[0].names().collect::<Vec<_>>(), files[1].names().collect::<Vec<_>>());
        files[0].names().for_each(|name| assert_eq!(files[0].floats(name).unwrap(), files[1].floats(name).unwrap()));
    }
}

/// The golden Gemma 3 as the text part of a model that also reads images, with the names of published checkpoints.
fn with_images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("gemma3");
    let text: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let config = serde_json::json!({
        "architectures": ["Gemma3ForSequenceClassification"], "model_type": "gemma3", "id2label": text["id2label"],
        "dtype": "bfloat16", "text_config": text, "vision_config": {"model_type": "siglip_vision_model"},
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let weights = Weights::open(&from).unwrap();
    let of_text = weights.names().map(|name| {
        let view = weights.get(name).unwrap();
        let name = if name == "score.weight" { name.to_owned() } else { format!("language_model.{name}") };
        OutTensor { name, dtype: Dtype::BF16, shape: view.shape.to_vec(), bytes: view.raw().into() }
    });
    let of_images = ["vision_tower.post_layernorm.weight", "multi_modal_projector.mm_input_projection_weight"];
    let of_images = of_images.map(|name| OutTensor {
        name: name.into(),
        dtype: Dtype::BF16,
        shape: vec![2],
        bytes: vec![0; 4].into(),
    });
    let tensors: Vec<OutTensor> = of_text.chain(of_images).collect();
    save(&dir.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    dir
}

#[test]
fn the_text_part_of_a_model_with_images_is_trained_merged_and_exported() {
    let base = with_images();
    let expected = TensorFile::open(golden("gemma3").join("cls.safetensors")).unwrap().floats("logits").unwrap().1;
    let whole = AppliedAdapter::open(base.path(), None, &PLUGINS).unwrap_or_else(|e| panic!("{e}"));
    close(&logits(&whole, "gemma3"), &expected, 5e-5);

    let adapter = golden("gemma3").join("peft_adapter");
    let applied = AppliedAdapter::open(&adapter, Some(base.path()), &PLUGINS).unwrap_or_else(|e| panic!("{e}"));
    close(&logits(&applied, "gemma3"), &golden_logits("gemma3"), 5e-5);
    let (_dir, out) = merged(&applied, MergeDtype::To(DType::F32), 1 << 30);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "gemma3_text");
    assert_eq!(config["architectures"], serde_json::json!(["Gemma3TextForSequenceClassification"]));
    assert!(config.get("vision_config").is_none());
    close(&logits(&AppliedAdapter::open(&out, None, &PLUGINS).unwrap(), "gemma3"), &golden_logits("gemma3"), 5e-5);

    // PEFT finds the layers by the names that transformers gives them in the whole model.
    let exported = base.path().join("peft");
    export(&applied, ExportFormat::Peft, &exported).unwrap();
    let file = TensorFile::open(exported.join("adapter_model.safetensors")).unwrap();
    let first = file.names().next().unwrap();
    assert_eq!(first, "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight");
    let config: Value = serde_json::from_slice(&fs::read(exported.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_modules"][0], "model.language_model.layers.0.self_attn.q_proj");
    let again = AppliedAdapter::open(&exported, Some(base.path()), &PLUGINS).unwrap_or_else(|e| panic!("{e}"));
    close(&logits(&again, "gemma3"), &golden_logits("gemma3"), 5e-5);
}

/// The golden adapter with a different configuration.
fn reconfigured(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("gemma").join("peft_adapter");
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::copy(from.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
    dir
}

#[test]
fn settings_of_peft_count_or_are_refused() {
    let golden_logits = golden_logits("gemma");
    // Stabilised, alpha / sqrt(r): with 2 sqrt(8) the same scale of 2 as 16 / 8 ...
    let stable = reconfigured(|config| {
        config.insert("use_rslora".into(), true.into());
        config.insert("lora_alpha".into(), (2.0 * 8f64.sqrt()).into());
    });
    close(&logits(&open(stable.path(), "gemma"), "gemma"), &golden_logits, 5e-5);
    // ... and a pattern overrides what would otherwise be a different scale.
    let pattern = reconfigured(|config| {
        config.insert("lora_alpha".into(), 1.into());
        config.insert("alpha_pattern".into(), serde_json::json!({"q_proj": 16, ".*v_proj": 16.0}));
    });
    close(&logits(&open(pattern.path(), "gemma"), "gemma"), &golden_logits, 5e-5);
    let base = golden("gemma");
    let refused = |key: &str, value: Value| {
        let dir = reconfigured(|config| {
            config.insert(key.into(), value);
        });
        let error = AppliedAdapter::open(dir.path(), Some(&base), &PLUGINS).err().unwrap().to_string();
        assert!(error.contains(key) && error.contains("adapter_config.json"), "{error}");
    };
    refused("use_dora", true.into());
    refused("init_lora_weights", "pissa".into());
    refused("layer_replication", serde_json::json!([[0, 1]]));
    refused("peft_type", "IA3".into());
    refused("task_type", "CAUSAL_LM".into());
    let pickle = reconfigured(|_| {});
    fs::rename(pickle.path().join("adapter_model.safetensors"), pickle.path().join("adapter_model.bin")).unwrap();
    let error = AppliedAdapter::open(pickle.path(), Some(&base), &PLUGINS).err().unwrap().to_string();
    assert!(error.contains("pickle") && error.contains("safe_serialization"), "{error}");
    let error = AppliedAdapter::open(&golden("mistral").join("peft_adapter"), Some(&base), &PLUGINS).err().unwrap();
    assert!(error.to_string().contains("expected"), "{error}");
}
