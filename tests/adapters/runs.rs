//! Adapters of real runs: merging, exporting, comparing and combining them.

use super::{PLUGINS, close, floats, golden, reconfigured};
use serde_json::Value;
use sparta_core::adapter::AppliedAdapter;
use sparta_core::weights::{TensorFile, Weights};
use sparta_tests::command::{self, failed, last_json, succeeded};
use std::fs;
use std::process::Output;
use std::sync::LazyLock;

static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fn run(args: &[&str]) -> Output {
    command::run(HOME.path(), args)
}

/// The JSON object that a command ends with.
#[track_caller]
fn succeed(args: &[&str]) -> Value {
    last_json(&succeeded(run(&[args, &["--json"]].concat())))
}

#[track_caller]
fn fail(args: &[&str], part: &str) {
    failed(&run(args), &[part]);
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
    fail(&["adapter", "export", &A, "--format", "gguf", "--out", "x"], "hold LoRA layers, not single elements");

    // Exported as Super-Tuning, it is the same model with the same class names; exported once more, too.
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
fn a_patch_turns_the_base_into_the_merged_model() {
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
        let error = AppliedAdapter::open(dir.path(), Some(&golden("gemma")), &PLUGINS).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused("SUPERTUNING", serde_json::json!({"r": 4}), "`r` is 4");
    refused(
        "SUPERTUNING",
        serde_json::json!({"save_precomputed_indices": false}),
        "`save_precomputed_indices` is false",
    );
    refused("SHIRA", serde_json::json!({"fan_in_fan_out": true}), "`fan_in_fan_out` is true");
    // LoRA's values would be whole tensors that the model does not have.
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
