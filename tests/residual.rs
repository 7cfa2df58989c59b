//! Changes of 16-bit weights that are too small for their type: counted, and kept with `--residual`. Real processes on
//! the embedded model. Needs `cargo build --release` first.

use serde_json::Value;
use sparta_core::weights::{Dtype, OutTensor, TensorFile, save};
use sparta_tests::command::{json, ran, refused};
use std::fs;
use std::path::{Path, PathBuf};

const SHORT: &str = "--max-train 64 --max-dev 8 --max-test 32 --device cpu";

#[test]
fn changes_that_the_stored_type_hides_are_counted() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (said, _) = ran(home, &format!("run {SHORT} --max-steps 2 --lr 1e-9 --out hidden"));
    assert!(said.contains("warning: only 0.0 % of the chosen weights"), "{said}");
    assert_eq!(json(home.join("hidden/result.json"))["visible"], 0.0);
    let (said, _) = ran(home, &format!("run {SHORT} --max-steps 4 --lr 0.1 --warmup 0 --out seen"));
    assert!(!said.contains("of the chosen weights have changed"), "{said}");
    let visible = json(home.join("seen/result.json"))["visible"].as_f64().unwrap();
    assert!(visible > 0.9, "{visible}");
    let (info, _) = ran(home, "adapter info seen --device cpu --json");
    let info: Value = serde_json::from_str(info.lines().last().unwrap()).unwrap();
    assert_eq!(info["differs_as_stored"], visible);
    ran(home, &format!("run {SHORT} --max-steps 2 --method lora --out lora"));
    assert!(json(home.join("lora/result.json"))["visible"].is_null());
}

/// The embedded model in bf16, and with the same numbers in f32.
fn models(home: &Path) -> [String; 2] {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets");
    let [bf16, f32s] = ["bf16", "f32"].map(|name| home.join(name));
    for dir in [&bf16, &f32s] {
        fs::create_dir(dir).unwrap();
        for entry in fs::read_dir(assets.join("model")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let file = TensorFile::open(bf16.join("model.safetensors")).unwrap();
    let widened = file.names().map(|name| {
        let (shape, values) = file.floats(name).unwrap();
        OutTensor { name: name.into(), dtype: Dtype::F32, shape, bytes: bytemuck::cast_slice(&values).to_vec().into() }
    });
    save(&f32s.join("model.safetensors"), &widened.collect::<Vec<_>>(), &Default::default()).unwrap();
    let data = assets.join("data");
    [bf16, f32s].map(|dir| format!("--model {} --task sst2 --data {}", dir.display(), data.display()))
}

/// The losses of a run's steps.
fn losses(run: PathBuf) -> Vec<f64> {
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.filter_map(|line| line["loss"].as_f64()).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// With `--residual` a bf16 model trains like its f32 copy; without, small changes are lost.
#[test]
fn no_change_is_too_small_with_a_residual() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let [bf16, f32s] = models(home);
    let options = format!("{SHORT} --precision f32 --max-steps 12 --epochs 3 --lr 2e-5 --warmup 0 --density 0.3");
    ran(home, &format!("run {f32s} {options} --out exact"));
    ran(home, &format!("run {bf16} {options} --out lost"));
    let (said, _) = ran(home, &format!("run {bf16} {options} --residual --out kept"));
    assert!(said.contains("a merged model has them only in f32"), "{said}");
    let [exact, lost, kept] = ["exact", "lost", "kept"].map(|run| losses(home.join(run)));
    assert!(distance(&exact, &kept) < 1e-6, "{exact:?} {kept:?}");
    assert!(distance(&exact, &lost) > 1e-4, "{exact:?} {lost:?}");
    let result = json(home.join("kept/result.json"));
    assert_eq!(result["device_memory"], result["planned_memory"]);

    // Another process gets the same, and so does the merged model in f32.
    let eval = |model: &str| -> Value {
        let (report, _) = ran(home, &format!("eval {model} --device cpu --json"));
        serde_json::from_str(report.lines().last().unwrap()).unwrap()
    };
    let [of_run, of_exact] = ["kept", "exact"].map(|run| eval(run)["metrics"].clone());
    assert_eq!(of_run, result["test"]);
    let loss = |metrics: &Value| metrics["loss"].as_f64().unwrap();
    assert!((loss(&of_run) - loss(&of_exact)).abs() < 1e-6, "{of_run} {of_exact}");
    ran(home, "adapter merge kept --out merged --dtype f32 --device cpu");
    ran(home, "adapter merge kept --out rounded --device cpu");
    // So does its export, where rounded changes would be zeros.
    ran(home, "adapter export kept --format peft --out exported");
    let exported = TensorFile::open(home.join("exported/adapter_model.safetensors")).unwrap();
    let values = exported.names().filter(|name| name.ends_with("supertuning_values"));
    let changes: Vec<f32> = values.flat_map(|name| exported.floats(name).unwrap().1).collect();
    let seen = changes.iter().filter(|change| **change != 0.0).count();
    assert!(seen as f64 > 0.9 * changes.len() as f64, "{seen} of {}", changes.len());
    let weights = |model: &str| fs::read(home.join(model).join("model.safetensors")).unwrap();
    ran(home, "adapter merge exact --out expected --dtype f32 --device cpu");
    assert_eq!(weights("merged").len(), weights("expected").len());
    assert!(weights("rounded").len() < weights("merged").len());
}

#[test]
fn a_run_with_a_residual_is_resumed_exactly() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let [bf16, f32s] = models(home);
    let options = format!("{SHORT} --precision bf16 --epochs 3 --schedule constant --warmup 0 --lr 1e-4 --residual");
    ran(home, &format!("run {bf16} {options} --out whole --max-steps 8"));
    ran(home, &format!("run {bf16} {options} --out parts --max-steps 3"));
    ran(home, "run --resume parts --max-steps 8");
    let adapter = |run: &str| fs::read(home.join(run).join("adapter/adapter.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("parts"));
    refused(home, &format!("run {f32s} {SHORT} --residual --out r1"), &["--residual is for 16-bit weights"]);
    refused(home, &format!("run {bf16} {SHORT} --method lora --residual --out r2"), &["`lora` has none here"]);
}
