//! Adapters: PEFT's LoRA directories against the golden numbers of peft itself, merging, the formats of other tools,
//! and combinations of several adapters, with the real binary where runs are needed. Needs `cargo build --release`
//! before.

use serde_json::Value;
use sparta_core::adapter::{Applied, ExportFormat, MergeDtype, MergeRequest, export, merge};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::train::Encoded;
use sparta_core::weights::{Dtype, OutTensor, TensorFile, Weights, save};
use sparta_graph::{Backend, DType};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
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

fn open(adapter: &Path, family: &str) -> Applied {
    Applied::open(adapter, Some(&golden(family)), &PLUGINS).unwrap_or_else(|e| panic!("{e}"))
}

fn peft(family: &str) -> Applied {
    open(&golden(family).join("peft_adapter"), family)
}

/// Logits of the golden static batch, row by row.
fn logits(applied: &Applied, family: &str) -> Vec<f32> {
    logits_on(cpu(), applied, family)
}

fn logits_on(device: Box<dyn Backend>, applied: &Applied, family: &str) -> Vec<f32> {
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

fn merged(applied: &Applied, dtype: MergeDtype, shard_bytes: u64) -> (tempfile::TempDir, PathBuf) {
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
        close(&logits(&Applied::open(&out, None, &PLUGINS).unwrap(), family), &golden_logits(family), 5e-5);
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
        let reference = golden(family).join(format!("../../../../shared/oracle/golden/{family}/train/lora"));
        match TensorFile::open(reference.join("merged.safetensors")) {
            Ok(file) => file.names().for_each(|n| close(&floats(&weights, n), &file.floats(n).unwrap().1, 1e-6)),
            Err(_) => sparta_tests::skipped("peft's own merged weights are not beside the repository"),
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
fn what_is_exported_for_peft_is_what_peft_wrote() {
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
    let whole = Applied::open(base.path(), None, &PLUGINS).unwrap_or_else(|e| panic!("{e}"));
    close(&logits(&whole, "gemma3"), &expected, 5e-5);

    let adapter = golden("gemma3").join("peft_adapter");
    let applied = Applied::open(&adapter, Some(base.path()), &PLUGINS).unwrap_or_else(|e| panic!("{e}"));
    close(&logits(&applied, "gemma3"), &golden_logits("gemma3"), 5e-5);
    let (_dir, out) = merged(&applied, MergeDtype::To(DType::F32), 1 << 30);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "gemma3_text");
    assert_eq!(config["architectures"], serde_json::json!(["Gemma3TextForSequenceClassification"]));
    assert!(config.get("vision_config").is_none());
    close(&logits(&Applied::open(&out, None, &PLUGINS).unwrap(), "gemma3"), &golden_logits("gemma3"), 5e-5);

    // PEFT finds the layers by the names that transformers gives them in the whole model.
    let exported = base.path().join("peft");
    export(&applied, ExportFormat::Peft, &exported).unwrap();
    let file = TensorFile::open(exported.join("adapter_model.safetensors")).unwrap();
    let first = file.names().next().unwrap();
    assert_eq!(first, "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight");
    let config: Value = serde_json::from_slice(&fs::read(exported.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_modules"][0], "model.language_model.layers.0.self_attn.q_proj");
    let again = Applied::open(&exported, Some(base.path()), &PLUGINS).unwrap_or_else(|e| panic!("{e}"));
    close(&logits(&again, "gemma3"), &golden_logits("gemma3"), 5e-5);
}

/// The golden adapter with another configuration.
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
    // ... and a pattern overrides what would be another scale.
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
        let error = Applied::open(dir.path(), Some(&base), &PLUGINS).err().unwrap().to_string();
        assert!(error.contains(key) && error.contains("adapter_config.json"), "{error}");
    };
    refused("use_dora", true.into());
    refused("init_lora_weights", "pissa".into());
    refused("layer_replication", serde_json::json!([[0, 1]]));
    refused("peft_type", "IA3".into());
    refused("task_type", "CAUSAL_LM".into());
    let pickle = reconfigured(|_| {});
    fs::rename(pickle.path().join("adapter_model.safetensors"), pickle.path().join("adapter_model.bin")).unwrap();
    let error = Applied::open(pickle.path(), Some(&base), &PLUGINS).err().unwrap().to_string();
    assert!(error.contains("pickle") && error.contains("safe_serialization"), "{error}");
    let error = Applied::open(&golden("mistral").join("peft_adapter"), Some(&base), &PLUGINS).err().unwrap();
    assert!(error.to_string().contains("expected"), "{error}");
}

static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// `sparta-cli`, in the directory that cargo puts this test's own executable below.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(format!("sparta-cli{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not there; run `cargo build --release` first", path.display());
    path
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).current_dir(HOME.path()).env_remove("SPARTA_PLUGIN_PATH");
    for (name, dir) in [("HOME", ""), ("XDG_CACHE_HOME", "cache"), ("XDG_DATA_HOME", "data")] {
        command.env(name, HOME.path().join(dir));
    }
    command.output().unwrap()
}

/// The JSON object that a command ends with.
#[track_caller]
fn succeed(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

#[track_caller]
fn fail(args: &[&str], part: &str) {
    let output = run(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains(part), "{args:?}: {message}");
}

/// A short run on the embedded data, in f32: its result and its directory.
fn train(method: &str, seed: &str, more: &[&str]) -> (Value, String) {
    let out = format!("{method}-{seed}");
    let args = ["run", "--method", method, "--seed", seed, "--max-steps", "60", "--device", "cpu", "--out", &out];
    (succeed(&[&args[..], &["--precision", "f32"], more].concat()), out)
}

static A: LazyLock<String> = LazyLock::new(|| train("sparta", "1", &["--density", "0.05"]).1);
static B: LazyLock<String> = LazyLock::new(|| train("sparta", "2", &["--density", "0.05"]).1);
static LORA: LazyLock<(Value, String)> = LazyLock::new(|| train("lora", "1", &[]));

fn accuracy(run: &str, more: &[&str]) -> Value {
    succeed(&[&["eval", run, "--device", "cpu"], more].concat())
}

#[test]
fn every_run_proves_its_merge() {
    let (lora, _) = &*LORA;
    let (full, _) = train("full", "1", &[]);
    let (head, _) = train("head", "1", &[]);
    for result in [lora, &full, &head] {
        let check = &result["merge_check"];
        let (difference, bound) = (check["largest_difference"].as_f64().unwrap(), check["bound"].as_f64().unwrap());
        assert!(difference <= bound && bound < 1.0, "{check}");
        assert!(check["examples"].as_u64().unwrap() > 0);
    }
}

/// The result of a run in bf16 can be merged, and is evaluated in bf16 by default.
#[test]
fn a_run_in_bf16_merges_and_is_evaluated_in_bf16() {
    for method in ["lora", "sparta"] {
        let out = format!("{method}-bf16");
        let args = ["run", "--method", method, "--max-steps", "20", "--device", "cpu", "--precision", "bf16"];
        let result = succeed(&[&args[..], &["--out", &out]].concat());
        let check = |key: &str| result["merge_check"][key].as_f64().unwrap();
        assert!(check("largest_difference") <= check("bound"), "{method}: {}", result["merge_check"]);
        let loss = |more: &[&str]| accuracy(&out, more)["metrics"]["loss"].as_f64().unwrap();
        assert_eq!(loss(&[]), loss(&["--precision", "bf16"]), "{method}");
        assert_ne!(loss(&[]), loss(&["--precision", "f32"]), "{method}");
    }
}

#[test]
fn formats_carry_the_same_adapter() {
    let expected = accuracy(&A, &[])["metrics"].clone();
    succeed(&["adapter", "export", &A, "--format", "with-indices", "--out", "explicit"]);
    let explicit = TensorFile::open(HOME.path().join("explicit/adapter.safetensors")).unwrap();
    assert!(explicit.names().any(|name| name.starts_with("index.model.layers.0.")));
    assert_eq!(accuracy("explicit", &[])["metrics"], expected);

    succeed(&["adapter", "export", &A, "--format", "sparse-deltas", "--out", "deltas"]);
    let test = ["--task", "sst2", "--data"];
    let config = fs::read_to_string(HOME.path().join(&*A).join("adapter/adapter.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let data = config["config"]["data"].as_str().unwrap();
    // The split differs from the run's if the seed matters, so compare on test, which is a separate file.
    assert_eq!(accuracy("deltas", &[&test[..], &[data]].concat())["metrics"]["accuracy"], expected["accuracy"]);

    let (_, lora) = &*LORA;
    succeed(&["adapter", "export", lora, "--format", "peft", "--out", "peft"]);
    let peft = accuracy("peft", &[&test[..], &[data]].concat());
    assert_eq!(peft["metrics"]["accuracy"], accuracy(lora, &[])["metrics"]["accuracy"]);

    for (run, dtype) in [(&*A, "keep"), (lora, "f32")] {
        let out = format!("merged-{dtype}");
        let merged = succeed(&["adapter", "merge", run, "--out", &out, "--dtype", dtype, "--device", "cpu"]);
        if dtype == "keep" {
            assert_eq!(merged["check"]["other_class"], 0);
        }
        let found = accuracy(&out, &[&test[..], &[data]].concat())["metrics"]["accuracy"].as_f64().unwrap();
        let adapter = accuracy(run, &[])["metrics"]["accuracy"].as_f64().unwrap();
        assert!((found - adapter).abs() < 0.01, "{found} {adapter}");
    }
    fail(&["adapter", "export", lora, "--format", "sparse-deltas", "--out", "x"], "hold single elements");
    fail(&["adapter", "export", lora, "--format", "patch", "--out", "x"], "holds single elements");

    // Super-Tuning: the same model, with the names of its classes; and again.
    let predictions = predicted(&A);
    assert!(predictions.contains("positive") && predictions.contains("negative"), "{predictions}");
    succeed(&["adapter", "export", &A, "--format", "peft", "--out", "elements"]);
    assert_eq!(predicted("elements"), predictions);
    let info = succeed(&["adapter", "info", "elements"]);
    assert_eq!((&info["format"], &info["method"]), (&"peft".into(), &"super-tuning".into()));
    succeed(&["adapter", "export", "elements", "--format", "peft", "--out", "elements-again"]);
    assert_eq!(predicted("elements-again"), predictions);
}

/// Classes and probabilities of some texts.
fn predicted(adapter: &str) -> String {
    fs::write(HOME.path().join("some-texts"), "a wonderful film\nboring and far too long\nwho knows\n").unwrap();
    let output = run(&["predict", adapter, "some-texts", "--device", "cpu", "--precision", "f32"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The patch, applied to the base model as vLLM does, gives the merged model in bf16.
#[test]
fn a_patch_makes_the_merged_model_of_the_base() {
    succeed(&["adapter", "export", &A, "--format", "patch", "--out", "patch"]);
    succeed(&["adapter", "merge", &A, "--out", "patched", "--dtype", "bf16", "--device", "cpu"]);
    let patch = TensorFile::open(HOME.path().join("patch/patch.safetensors")).unwrap();
    assert_eq!(patch.metadata()["encoding"], "gap_delta");
    assert_eq!(patch.metadata()["labels"], "[\"negative\",\"positive\"]");
    let manifest = fs::read_to_string(HOME.path().join(&*A).join("adapter/adapter.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let base = Weights::open(manifest["config"]["model"].as_str().unwrap()).unwrap();
    let merged = Weights::open(HOME.path().join("patched")).unwrap();
    let (mut elements, mut patched) = (0, 0);
    for name in merged.names() {
        let expected = floats(&merged, name);
        let mut ours = base.get(name).map_or_else(|| vec![f32::NAN; expected.len()], |_| floats(&base, name));
        if patch.get(&format!("{name}.val")).is_some() {
            let (gaps, values) =
                (patch.integers(&format!("{name}.idx")).unwrap().1, patch.floats(&format!("{name}.val")).unwrap().1);
            let mut at = -1;
            for (gap, value) in gaps.iter().zip(&values) {
                at += gap + 1;
                assert_ne!(ours[at as usize], *value, "{name}: an element that does not change");
                ours[at as usize] = *value;
            }
            (elements, patched) = (elements + values.len(), patched + 1);
        }
        assert_eq!(ours, expected, "{name}");
    }
    assert_eq!(patch.metadata()["total_changed_elements"], elements.to_string());
    assert_eq!(patch.names().count(), 2 * patched);
}

/// Errors name what the format of single elements cannot store.
#[test]
fn settings_of_sparse_adapters_of_peft_are_read_or_refused() {
    let refused = |kind: &str, more: Value, part: &str| {
        let dir = reconfigured(|config| {
            config.insert("peft_type".into(), kind.into());
            for key in ["r", "lora_alpha", "init_lora_weights"] {
                config.remove(key);
            }
            config.extend(more.as_object().unwrap().clone());
        });
        let error = Applied::open(dir.path(), Some(&golden("gemma")), &PLUGINS).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused("SUPERTUNING", serde_json::json!({"r": 4}), "`r` is 4");
    refused(
        "SUPERTUNING",
        serde_json::json!({"save_precomputed_indices": false}),
        "`save_precomputed_indices` is false",
    );
    refused("SHIRA", serde_json::json!({"fan_in_fan_out": true}), "`fan_in_fan_out` is true");
    // The values of LoRA are whole tensors of no model here.
    refused("SHIRA", serde_json::json!({}), "lora_A");
}

/// A run from another machine: its model is not where the run says.
#[test]
fn a_moved_run_asks_for_its_base_model() {
    let adapter = HOME.path().join("moved/adapter");
    fs::create_dir_all(&adapter).unwrap();
    let source = HOME.path().join(&LORA.1).join("adapter");
    fs::copy(source.join("adapter.safetensors"), adapter.join("adapter.safetensors")).unwrap();
    let text = fs::read_to_string(source.join("adapter.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    let model = manifest["config"]["model"].take();
    manifest["config"]["model"] = "elsewhere/model".into();
    fs::write(adapter.join("adapter.json"), manifest.to_string()).unwrap();
    fail(&["adapter", "info", "moved/adapter"], "`elsewhere/model` is not here; give the model with --model");
    succeed(&["adapter", "info", "moved/adapter", "--model", model.as_str().unwrap()]);
}

#[test]
fn info_and_diff_count() {
    let info = succeed(&["adapter", "info", &A]);
    assert_eq!(info["method"], "sparta");
    let layers = info["layers"].as_array().unwrap();
    let changed: u64 = layers.iter().map(|l| l["changed"].as_u64().unwrap()).sum();
    assert_eq!(changed, info["trained_in_body"].as_u64().unwrap() + info["trained_in_head"].as_u64().unwrap());
    let share = info["differs_in_bf16"].as_f64().unwrap();
    assert!(share > 0.1 && share <= 1.0, "{share}");

    let same = succeed(&["adapter", "diff", &A, &A])["total"].clone();
    assert!((same["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(same["both"], same["changed_a"]);
    let other = succeed(&["adapter", "diff", &A, &B])["total"].clone();
    // Independent draws with 5 % of the model: overlap near the product of the densities.
    let (both, changed) = (other["both"].as_f64().unwrap(), other["changed_a"].as_f64().unwrap());
    assert!(both > 0.0 && both < 0.2 * changed, "{other}");
    let lora = succeed(&["adapter", "diff", &A, &LORA.1, "--device", "cpu"])["total"].clone();
    assert!(lora["changed_b"].as_u64().unwrap() > lora["changed_a"].as_u64().unwrap() / 2, "{lora}");
}

#[test]
fn adapters_combine_into_one_with_a_head_for_each() {
    let sum = succeed(&["merge-adapters", &A, &B, "--out", "sum"]);
    assert_eq!(sum["heads"], serde_json::json!(["sst2", "sst2-2"]));
    let diff = succeed(&["adapter", "diff", &A, &B])["total"].clone();
    assert!(sum["conflicts"][0]["both"].as_u64().unwrap() <= diff["both"].as_u64().unwrap());
    let both = accuracy("sum", &[]);
    for head in ["sst2", "sst2-2"] {
        let alone = accuracy("sum", &["--head", head]);
        assert_eq!(alone["metrics"], both["heads"][head]);
    }
    // Task vectors of A and B in the sum.
    let norm = |d: &Value, key: &str| d["total"][key].as_f64().unwrap();
    let from_a = succeed(&["adapter", "diff", "sum", &A]);
    let from_b = succeed(&["adapter", "diff", "sum", &B]);
    assert!((norm(&from_a, "norm_difference") - norm(&from_b, "norm_b")).abs() < 1e-4 * norm(&from_b, "norm_b"));

    fs::write(HOME.path().join("texts"), "what a wonderful film, i loved it.\n").unwrap();
    let line = |args: &[&str]| String::from_utf8(run(args).stdout).unwrap();
    let answers = line(&["predict", "sum", "texts", "--device", "cpu"]);
    assert!(answers.contains("sst2: ") && answers.contains("sst2-2: "), "{answers}");
    let one = line(&["predict", "sum", "texts", "--device", "cpu", "--head", "sst2"]);
    assert!(one.starts_with("positive\t") || one.starts_with("negative\t"), "{one}");
    fail(&["predict", "sum", "texts", "--head", "cola"], "the heads are: sst2, sst2-2");
    fail(&["adapter", "merge", "sum", "--out", "x"], "2 heads");
}

#[test]
fn every_strategy_runs_and_wrong_input_is_refused() {
    let (_, lora) = &*LORA;
    let pairs: [(&str, &[&str]); 5] = [
        ("weighted", &["--weights", "0.5,0.5"]),
        ("ties", &["--keep", "0.5"]),
        ("dare", &["--drop", "0.9", "--seed", "3"]),
        ("soup", &[]),
        ("fisher", &["--examples", "4"]),
    ];
    for (strategy, more) in pairs {
        for (other, name) in [(&*B, "sparse"), (lora, "dense")] {
            let out = format!("{strategy}-{name}");
            let args = ["merge-adapters", &A, other, "--strategy", strategy, "--out", &out, "--device", "cpu"];
            let combined = succeed(&[&args, more].concat());
            let heads = if matches!(strategy, "soup" | "fisher") { 1 } else { 2 };
            assert_eq!(combined["heads"].as_array().unwrap().len(), heads, "{strategy}");
            assert!(combined["changed"].as_u64().unwrap() > 0);
        }
        assert!(
            accuracy(&format!("{strategy}-sparse"), &["--head", "sst2", "--max-examples", "100"])["metrics"]
                .is_object()
        );
    }
    // The mean of a model with itself is the model.
    succeed(&["merge-adapters", &A, &A, "--strategy", "soup", "--out", "self"]);
    let same = succeed(&["adapter", "diff", "self", &A])["total"].clone();
    assert!((same["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-6 && same["norm_difference"].as_f64().unwrap() < 1e-3);

    let peft = golden("gemma").join("peft_adapter");
    fail(&["merge-adapters", &A, peft.to_str().unwrap(), "--out", "x"], "--model");
    fail(&["merge-adapters", &A, "--out", "x"], "2");
    fail(&["merge-adapters", &A, &B, "--out", "x", "--keep", "0.5"], "--keep has no effect on the strategy sum");
    fail(&["merge-adapters", &A, &B, "--out", "x", "--strategy", "weighted"], "needs --weights");
    fail(&["merge-adapters", &A, &B, "--out", "self"], "already exists");
}

#[test]
fn full_models_average() {
    let out = |name: &str| HOME.path().join(name);
    for (run, name) in [(&*A, "full-a"), (&*B, "full-b")] {
        succeed(&["adapter", "merge", run, "--out", name, "--dtype", "f32", "--device", "cpu"]);
    }
    succeed(&["merge-adapters", "full-a", "full-b", "--strategy", "soup", "--weights", "3,1", "--out", "full-soup"]);
    let [a, b, soup] = ["full-a", "full-b", "full-soup"].map(|name| Weights::open(out(name)).unwrap());
    for name in ["score.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"] {
        let mean: Vec<f32> = floats(&a, name).iter().zip(floats(&b, name)).map(|(a, b)| 0.75 * a + 0.25 * b).collect();
        close(&floats(&soup, name), &mean, 1e-6);
    }
    fail(&["merge-adapters", "full-a", "full-b", "--out", "x"], "--strategy soup");
}
