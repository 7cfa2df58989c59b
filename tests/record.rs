//! A run is bound to its plugins, and its files are used unchanged or not at all. Real processes on the embedded job.
//! Needs
//! `cargo build --release` first.

use serde_json::Value;
use sparta_core::adapter::{self, MergeDtype, MergeRequest};
use sparta_core::job::{EvalReport, Observer, RunConfig, RunPlan, StepReport};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::{self, AdaptedModel, EvalRequest, Start};
use sparta_core::text::Tokenizer;
use sparta_core::weights::{Dtype, OutTensor, TensorFile, save};
use sparta_graph::{Backend, DType};
use sparta_plugin::method::{Method, MethodInfo, Options, Parameter, Role, Selection};
use sparta_tests::command::{binary, command, json, ran, refused};
use std::collections::BTreeMap;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const SHORT: &str = "--max-train 64 --max-dev 8 --max-test 8 --device cpu";

/// A copy of the library of a built-in plugin or, with `changed`, another build of the same version.
#[cfg(target_os = "linux")]
fn library(plugin: &str, to: &Path, changed: bool) -> String {
    let name = format!("{DLL_PREFIX}sparta_{plugin}{DLL_SUFFIX}");
    let mut bytes = fs::read(binary().with_file_name(&name)).unwrap();
    if changed {
        bytes.push(0);
    }
    fs::create_dir_all(to).unwrap();
    let path = to.join(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// The record of a kind of plugin in a run's configuration.
fn recorded(run: &Path, kind: &str) -> Value {
    let config = json(run.join("config.json"));
    config["plugins"].as_array().unwrap().iter().find(|plugin| plugin["kind"] == kind).unwrap().clone()
}

#[test]
#[cfg(target_os = "linux")]
fn a_different_build_of_a_plugin_is_refused_wherever_it_would_compute() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let run = home.join("run");
    let method = library("method_sparta", &home.join("p"), false);
    ran(home, &format!("run {SHORT} --max-steps 2 --plugin {method} --out run"));
    let was = recorded(&run, "method");
    assert_eq!(was["library"], *method);
    for kind in ["task", "backend"] {
        assert_eq!(recorded(&run, kind)["sha256"].as_str().unwrap().len(), 64, "{kind}");
    }
    let adapter = fs::read(run.join("adapter/adapter.json")).unwrap();

    // The run remembers the library: it need not be named again, although another one is beside the executable.
    fs::write(home.join("texts"), "a good film\n").unwrap();
    let (answer, _) = ran(home, "predict run texts --device cpu");
    for line in ["eval run --device cpu", "run --resume run --device cpu", "adapter info run --device cpu"] {
        ran(home, line);
    }
    assert_eq!(recorded(&run, "method"), was);
    assert_eq!(fs::read(run.join("adapter/adapter.json")).unwrap(), adapter);

    // Another build at the same place, and an equal one elsewhere.
    library("method_sparta", &home.join("p"), true);
    let hash = was["sha256"].as_str().unwrap();
    let moved = library("method_sparta", &home.join("q"), false);
    for line in [
        "predict run texts --device cpu",
        "eval run --device cpu",
        "run --resume run --max-steps 3 --device cpu",
        "plan --resume run --device cpu",
        "adapter merge run --out merged --device cpu",
        "adapter export run --format sparse-deltas --out exported",
        "merge-adapters run run --out both --device cpu",
    ] {
        let other = format!("{line} --plugin {method}");
        refused(home, &other, &["the method `sparta` of the run was", hash, &method, "is now", "--allow-other-plugin"]);
        if !line.contains("run --resume") {
            ran(home, &format!("{line} --plugin {moved}"));
        }
        for made in ["merged", "exported", "both"] {
            fs::remove_dir_all(home.join(made)).ok();
        }
    }
    assert_eq!(json(run.join("config.json"))["max_steps"], 2, "a rejected command changes nothing");

    // Accepted with a warning.
    let (same, warning) = ran(home, "predict run texts --device cpu --allow-other-plugin");
    assert_eq!(same, answer);
    assert!(warning.contains("warning: the method `sparta` of the run was") && warning.contains(hash), "{warning}");
    let (result, _) = ran(home, "eval run --device cpu --allow-other-plugin --json");
    let result: Value = serde_json::from_str(result.lines().last().unwrap()).unwrap();
    assert!(result["other_plugins"][0].as_str().unwrap().contains(hash), "{result}");
    let (plan, _) = ran(home, "run --resume run --max-steps 3 --device cpu --allow-other-plugin");
    assert!(plan.contains("note     the method `sparta` of the run was"), "{plan}");
    assert_eq!(json(run.join("config.json"))["earlier_plugins"], Value::Array(vec![was.clone()]));
    // From now on the run has the other one.
    ran(home, "eval run --device cpu");
    refused(home, &format!("eval run --device cpu --plugin {moved}"), &[hash]);
}

#[test]
#[cfg(target_os = "linux")]
fn tasks_and_backends_are_compared_where_they_are_used() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    ran(home, &format!("run {SHORT} --max-steps 2 --out run"));
    fs::write(home.join("texts"), "a good film\n").unwrap();
    let task = library("task_glue", &home.join("t"), true);
    refused(home, &format!("eval run --device cpu --plugin {task}"), &["the task `glue`", &task, "SHA-256"]);
    // Predicting does not use the task.
    ran(home, &format!("predict run texts --device cpu --plugin {task}"));
    let backend = library("backend_cpu", &home.join("b"), true);
    for line in ["eval run", "predict run texts", "run --resume run", "adapter merge run --out merged"] {
        let line = format!("{line} --device cpu --plugin {backend}");
        refused(home, &line, &["the backend `cpu`", &backend, "SHA-256"]);
    }
    // A linked plugin may be different code.
    let alone = home.join("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(binary(), alone.join("sparta-cli")).unwrap();
    ran(home, "eval run --device cpu");
    let config = home.join("run/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let beside = binary().parent().unwrap().display().to_string();
    fs::write(&config, text.replace(&beside, "/nowhere")).unwrap();
    let output = std::process::Command::new(alone.join("sparta-cli"))
        .args(["eval", "run", "--device", "cpu"])
        .current_dir(home)
        .env("HOME", home)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("linked into sparta-cli"), "{text}");
}

/// With any bit of a manifest flipped, the checkpoint is skipped, and the result is that of the older one.
#[test]
fn one_bit_of_a_checkpoint_s_manifest() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let options = format!("{SHORT} --epochs 20 --checkpoint-interval 5 --eval-interval 4 --patience 9");
    ran(home, &format!("run {options} --max-steps 10 --out good"));
    let manifest = "checkpoints/step-00000010/checkpoint.json";
    let text = fs::read(home.join("good").join(manifest)).unwrap();
    let seal = fs::read(home.join("good/checkpoints/step-00000010/checkpoint.sha256")).unwrap();
    copy(&home.join("good"), &home.join("alone"));
    ran(home, "run --resume alone --max-steps 14 --device cpu");
    let place =
        |what: &str| text.windows(what.len()).position(|window| window == what.as_bytes()).unwrap() + what.len();
    let bits = [place("\"step\": "), place("\"updates\": "), place("\"stale\": "), place("state.safetensors\": \""), 2];
    for (case, at) in bits.into_iter().enumerate() {
        let run = format!("damaged-{case}");
        copy(&home.join("good"), &home.join(&run));
        let mut damaged = text.clone();
        damaged[at] ^= 4;
        fs::write(home.join(&run).join(manifest), damaged).unwrap();
        let (said, _) = ran(home, &format!("run --resume {run} --max-steps 14 --device cpu"));
        assert!(said.contains("step-00000010: skipped: checkpoint.json is damaged"), "{said}");
        for file in ["metrics.jsonl", "adapter/adapter.safetensors"] {
            let [alone, damaged] = ["alone", &run].map(|run| fs::read(home.join(run).join(file)).unwrap());
            assert!(alone == damaged, "bit {at}: {file} differs");
        }
    }
    // Nothing can be trusted if the hash is damaged or missing.
    for case in 0..2 {
        let run = format!("seal-{case}");
        copy(&home.join("good"), &home.join(&run));
        let path = home.join(&run).join("checkpoints/step-00000010/checkpoint.sha256");
        fs::remove_file(&path).unwrap();
        if case == 0 {
            fs::write(&path, [&seal[..10], b"?", &seal[11..]].concat()).unwrap();
        }
        let (said, _) = ran(home, &format!("run --resume {run} --max-steps 14 --device cpu"));
        assert!(said.contains("step-00000010: skipped"), "{said}");
    }
}

/// A checkpoint beyond the end of the run is rejected even if intact.
#[test]
fn a_checkpoint_beyond_the_end_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    ran(home, &format!("run {SHORT} --max-steps 3 --out run"));
    let dir = home.join("run/checkpoints/step-00000003");
    let manifest = dir.join("checkpoint.json");
    let text = fs::read_to_string(&manifest).unwrap().replace("\"step\": 3", "\"step\": 9");
    fs::write(&manifest, &text).unwrap();
    fs::write(dir.join("checkpoint.sha256"), sparta_core::checkpoint::seal(text.as_bytes())).unwrap();
    refused(home, "run --resume run --device cpu", &["after step 9", "beyond the end of the run at step 3"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Trains the norms but not the head.
struct Norms;

impl Method for Norms {
    fn describe(&self) -> MethodInfo {
        let (name, version, summary) = ("norms".into(), "1".into(), String::new());
        MethodInfo { name, version, summary, options: vec![], default_lr: 1e-2 }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, sparta_plugin::Error> {
        let choose = |p: &Parameter| if p.role == Role::Norm { Selection::Dense } else { Selection::Frozen };
        Ok(parameters.iter().map(choose).collect())
    }
}

sparta_plugin::export_method!(norms: Norms);

struct Silent;

impl Observer for Silent {
    fn plan(&mut self, _: &RunPlan) {}
    fn step(&mut self, _: &StepReport) {}
    fn eval(&mut self, _: &EvalReport) {}
    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}
    fn message(&mut self, text: &str) {
        panic!("{text}");
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

fn cpu() -> sparta_core::Result<Box<dyn Backend>> {
    Ok(Box::new(sparta_backend_cpu::Cpu::new(None)?))
}

/// A head that was drawn but never trained is stored with the adapter.
#[test]
fn a_new_head_that_a_method_leaves_frozen_is_saved() {
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {SHORT} --method full --max-steps 1 --out first"));
    let beside = vec![binary().parent().unwrap().to_owned()];
    let mut plugins = PluginSet::discover(&DiscoverOptions { beside, ..DiscoverOptions::default() });
    // SAFETY: the entry point that the SDK wrote.
    unsafe { plugins.link(norms) };
    let out = home.path().join("run");
    let first = RunConfig::of_run(&home.path().join("first")).unwrap();
    let config = RunConfig {
        method: "norms".into(),
        method_options: Default::default(),
        out: out.clone(),
        max_test: None,
        lr: None,
        ..first
    };
    let result = run::run(&config, &plugins, &cpu, Start::New, &mut Silent).unwrap();
    assert!(result.merge_check.unwrap().agrees());

    let adapted = AdaptedModel::open(&out, None, &plugins).unwrap();
    let request = EvalRequest {
        split: "test".into(),
        head: None,
        task: None,
        data: None,
        task_options: BTreeMap::new(),
        max_examples: None,
    };
    let again = run::evaluate(&adapted, &request, &plugins, cpu().unwrap(), |_, _| {}).unwrap();
    assert_eq!(again.confusion, result.test.as_ref().unwrap().confusion);
    let merged = home.path().join("merged");
    let request_merge = MergeRequest { out: merged.clone(), dtype: MergeDtype::To(DType::F32), shard_bytes: 1 << 30 };
    adapter::merge(adapted.applied(), &request_merge, cpu().unwrap()).unwrap();
    let (task, data) = (Some(config.task.clone()), Some(config.data.clone()));
    let of_merged = AdaptedModel::open(&merged, None, &plugins).unwrap();
    let request = EvalRequest { task, data, ..request };
    let again = run::evaluate(&of_merged, &request, &plugins, cpu().unwrap(), |_, _| {}).unwrap();
    assert_eq!(again.confusion, result.test.unwrap().confusion);
}

/// The embedded model as a classifier with other labels, with the rows of its head in this order.
fn classifier(home: &Path, name: &str, labels: &[&str], rows: &[usize]) -> String {
    let merged = home.join("merged");
    if !merged.exists() {
        ran(home, &format!("run {SHORT} --method head --max-steps 4 --lr 0.03 --out trained"));
        ran(home, "adapter merge trained --out merged --device cpu");
    }
    let dir = home.join(name);
    copy(&merged, &dir);
    let mut config = json(dir.join("config.json"));
    let numbered = || labels.iter().enumerate();
    config["id2label"] = numbered().map(|(i, label)| (i.to_string(), Value::from(*label))).collect();
    config["label2id"] = numbered().map(|(i, label)| (label.to_string(), Value::from(i))).collect();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let file = TensorFile::open(merged.join("model.safetensors")).unwrap();
    let tensors: Vec<OutTensor> = file
        .names()
        .map(|tensor| {
            let view = file.get(tensor).unwrap();
            let (mut shape, mut bytes) = (view.shape.to_vec(), view.bytes.to_vec());
            if tensor == "score.weight" {
                let width = bytes.len() / shape[0];
                bytes = rows.iter().flat_map(|row| view.bytes[row * width..(row + 1) * width].to_vec()).collect();
                shape[0] = rows.len();
            }
            OutTensor { name: tensor.into(), dtype: view.dtype, shape, bytes: bytes.into() }
        })
        .collect();
    save(&dir.join("model.safetensors"), &tensors, &Default::default()).unwrap();
    dir.display().to_string()
}

#[test]
fn a_head_of_the_model_is_matched_by_name_or_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let same = classifier(home, "same", &["negative", "positive"], &[0, 1]);
    let swapped = classifier(home, "swapped", &["POSITIVE", "Negative"], &[1, 0]);
    let unnamed = classifier(home, "unnamed", &["LABEL_0", "LABEL_1"], &[0, 1]);
    let three = classifier(home, "three", &["a", "b", "c"], &[0, 1, 0]);
    let others = classifier(home, "others", &["cat", "dog"], &[0, 1]);
    let data = json(home.join("trained/config.json"))["data"].as_str().unwrap().to_owned();
    let options =
        |model: &str| format!("run {SHORT} --task sst2 --data {data} --model {model} --method lora --max-steps 2");
    let first = |run: &str| {
        let text = fs::read_to_string(home.join(run).join("metrics.jsonl")).unwrap();
        serde_json::from_str::<Value>(text.lines().next().unwrap()).unwrap()["loss"].as_f64().unwrap()
    };
    for (model, run, said) in [
        (&same, "a", "note     the head is the model's own\n"),
        (&swapped, "b", "for the labels POSITIVE, Negative, matched by name"),
        (&unnamed, "c", "have no names and are taken to be negative, positive"),
    ] {
        let (plan, _) = ran(home, &format!("{} --out {run}", options(model)));
        assert!(plan.contains(said), "{plan}");
        assert_eq!(first(run), first("a"), "{run}");
        let [a, b] = ["a", run].map(|run| fs::read(home.join(run).join("adapter/adapter.safetensors")).unwrap());
        assert!(a == b, "{run}");
        // The merged model has the task's names in the task's order, whatever the model's was.
        ran(home, &format!("adapter merge {run} --out {run}-merged --device cpu"));
        let config = json(home.join(format!("{run}-merged/config.json")));
        assert_eq!(config["id2label"], serde_json::json!({"0": "negative", "1": "positive"}));
    }
    // The same classifier with swapped labels.
    let eval = |model: &str| {
        let (out, _) = ran(home, &format!("eval {model} --task sst2 --data {data} --device cpu --json"));
        serde_json::from_str::<Value>(out.lines().last().unwrap()).unwrap()["metrics"].clone()
    };
    assert_eq!(eval(&same), eval(&swapped));
    for (model, parts) in [(&three, "for the labels a, b, c"), (&others, "for the labels cat, dog")] {
        let line = format!("{} --out d", options(model));
        refused(home, &line, &[parts, "the task has negative, positive", "--new-head"]);
    }
    let (plan, _) = ran(home, &format!("{} --new-head --out e", options(&three)));
    assert!(!plan.contains("the model's own"), "{plan}");
    assert!((first("e") - 2f64.ln()).abs() < 0.05);
    ran(home, "eval e --device cpu");
    refused(home, &format!("{} --head-init-std 0.5 --out f", options(&same)), &["--head-init-std", "--new-head"]);
    ran(home, &format!("{} --head-init-std 0.5 --new-head --out f", options(&same)));
    assert!(first("f") != first("e"));
}

/// A tokenizer that appends the padding token to each text: the token before it counts, in a run, in `eval`, in
/// `predict`, and for readers of the merged model's `config.json` such as transformers.
#[test]
fn padding_at_the_end_is_not_read() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    ran(home, &format!("run {SHORT} --max-steps 1 --out first"));
    let first = json(home.join("first/config.json"));
    let (model, data) = (home.join("model"), first["data"].as_str().unwrap());
    copy(Path::new(first["model"].as_str().unwrap()), &model);
    let mut tokenizer = json(model.join("tokenizer_config.json"));
    let eos = tokenizer["eos_token"].clone();
    tokenizer["pad_token"] = eos.clone();
    tokenizer["add_eos_token"] = true.into();
    tokenizer["add_bos_token"] = true.into();
    tokenizer["tokenizer_class"] = "LlamaTokenizer".into();
    fs::write(model.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    let mut config = json(model.join("config.json"));
    config.as_object_mut().unwrap().insert("pad_token_id".into(), Value::Null);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let pad = Tokenizer::open(&model).unwrap().pad_id().unwrap();
    assert_eq!(Tokenizer::open(&model).unwrap().encode("good", None).unwrap().last(), Some(&pad));

    ran(
        home,
        &format!("run {SHORT} --task sst2 --data {data} --model model --method head --max-steps 3 --lr 0.1 --out run"),
    );
    ran(home, "adapter merge run --out merged --device cpu");
    assert_eq!(json(home.join("merged/config.json"))["pad_token_id"], pad);
    let eos = eos.as_str().or(eos["content"].as_str()).unwrap();
    let texts = ["a good film".to_owned(), format!("bad {eos}"), format!("{eos} dull {eos}{eos}")];
    fs::write(home.join("texts"), texts.join("\n")).unwrap();
    let answers = |what: &str| ran(home, &format!("predict {what} texts --device cpu")).0;
    assert_eq!(answers("run"), answers("merged"));

    // `inspect forward` on what the tokenizer gives, special tokens and all.
    let tokens: Vec<Vec<u32>> =
        texts.iter().map(|text| Tokenizer::open(&model).unwrap().encode(text, None).unwrap()).collect();
    let width = tokens.iter().map(Vec::len).max().unwrap();
    let padded = |fill: &dyn Fn(&Vec<u32>, usize) -> i64| -> Vec<u8> {
        tokens.iter().flat_map(|row| (0..width).map(|i| fill(row, i))).flat_map(i64::to_le_bytes).collect()
    };
    let ids = padded(&|row, i| row.get(i).copied().unwrap_or(pad).into());
    let tensor = |name: &str, bytes: Vec<u8>| OutTensor {
        name: name.into(),
        dtype: Dtype::I64,
        shape: vec![tokens.len(), width],
        bytes: bytes.into(),
    };
    save(&home.join("batch"), &[tensor("input_ids", ids)], &Default::default()).unwrap();
    ran(home, "inspect forward --model merged --batch batch --out logits --device cpu");
    let logits = TensorFile::open(home.join("logits")).unwrap().floats("logits").unwrap().1;
    for (line, row) in answers("run").lines().zip(logits.chunks(2)) {
        let p: f32 = line.split("positive ").nth(1).unwrap().trim().parse().unwrap();
        let expected = 1.0 / (1.0 + (row[0] - row[1]).exp());
        assert!((p - expected).abs() < 1e-4, "{line}: {row:?}");
    }
}

/// Every file of a run with its bytes.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), fs::read(path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_finished_run_stays_as_it_is_and_its_time_covers_all_processes() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let run = home.join("run");
    ran(home, &format!("run {SHORT} --epochs 9 --max-steps 8 --out run"));
    let before = files(&run);
    let (out, _) = ran(home, "run --resume run --device cpu --json");
    assert!(files(&run) == before, "a finished run was changed");
    let again: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let first = json(run.join("result.json"));
    assert_eq!(again["training_seconds"], first["training_seconds"]);
    assert_eq!(again["test"], first["test"]);

    ran(home, "run --resume run --max-steps 9 --device cpu");
    let longer = json(run.join("result.json"));
    let [of_8, of_9] = [&first, &longer].map(|result| result["training_seconds"].as_f64().unwrap());
    assert!(of_9 > of_8, "{of_9} s for 9 steps, {of_8} s for the first 8 of them");
    let tokens = json(run.join("counters.json"))["tokens"].as_f64().unwrap();
    let speed = longer["tokens_per_second"].as_f64().unwrap();
    assert!((tokens / of_9 / speed - 1.0).abs() < 1e-9, "{tokens} tokens in {of_9} s at {speed}");
    let logged: f64 = fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].as_f64())
        .sum();
    assert_eq!(tokens, logged);

    // A damaged adapter is rewritten.
    let adapter = run.join("adapter/adapter.safetensors");
    let good = fs::read(&adapter).unwrap();
    fs::write(&adapter, &good[..good.len() - 1]).unwrap();
    ran(home, "run --resume run --device cpu");
    assert!(fs::read(&adapter).unwrap() == good);
}

/// A run that is being extended has no result until it has one of the new length.
#[test]
fn a_killed_extension_leaves_no_result() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    ran(home, &format!("run {SHORT} --epochs 1000000 --max-steps 2 --out run"));
    let run = home.join("run");
    let log = run.join("metrics.jsonl");
    let lines = || fs::read_to_string(&log).unwrap().lines().count();
    let args = ["run", "--resume", "run", "--max-steps", "1000000", "--device", "cpu"];
    let mut child = command(home, &args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    while lines() < 8 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!run.join("result.json").exists() && !run.join("report.html").exists());
    assert_eq!(json(run.join("config.json"))["max_steps"], 1_000_000);
}

#[test]
fn adapters_that_contradict_themselves_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    ran(home, &format!("run {SHORT} --max-steps 2 --out run"));
    ran(home, "adapter export run --format with-indices --out sets");
    ran(home, "eval sets --device cpu");
    let path = home.join("sets/adapter.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let lost = file.names().find(|name| name.starts_with("delta.")).unwrap().to_owned();
    let tensors: Vec<OutTensor> = file
        .names()
        .filter(|name| **name != lost)
        .map(|name| {
            let view = file.get(name).unwrap();
            OutTensor {
                name: name.into(),
                dtype: view.dtype,
                shape: view.shape.to_vec(),
                bytes: view.bytes.to_vec().into(),
            }
        })
        .collect();
    drop(file);
    save(&path, &tensors, &Default::default()).unwrap();
    let mut manifest = json(home.join("sets/adapter.json"));
    manifest["values_sha256"] = sparta_core::hash::hash_file(&path).unwrap().into();
    fs::write(home.join("sets/adapter.json"), manifest.to_string()).unwrap();
    refused(home, "eval sets --device cpu", &[&lost.replace("delta.", "index."), "there is no `delta."]);

    let path = home.join("run/adapter/adapter.json");
    let mut manifest = json(path.clone());
    manifest["options"]["densty"] = 0.1.into();
    fs::write(&path, manifest.to_string()).unwrap();
    refused(home, "eval run --device cpu", &["adapter.json", "densty"]);
}

#[test]
fn combining_adapters_of_one_seed_gives_a_note() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for (out, seed) in [("a", 0), ("b", 0), ("c", 1)] {
        ran(home, &format!("run {SHORT} --max-steps 2 --seed {seed} --out {out}"));
    }
    let (_, warning) = ran(home, "merge-adapters a b c --out all --device cpu");
    assert_eq!(warning.matches("an overlap of 100 %").count(), 1, "{warning}");
    assert!(warning.contains("a/adapter and b/adapter change the same") && warning.contains("--seed"), "{warning}");
}

#[test]
fn predictions_are_finite_and_texts_are_what_the_task_has() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let model = classifier(home, "same", &["negative", "positive"], &[0, 1]);
    fs::write(home.join("pairs"), "{\"text\": \"a\"}\n{\"text\": \"a\", \"pair\": \"b\"}\n").unwrap();
    refused(home, "predict trained pairs --device cpu", &["text 2: expected a single text for task sst2"]);
    let path = Path::new(&model).join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let tensors: Vec<OutTensor> = file
        .names()
        .map(|name| {
            let (shape, values) = file.floats(name).unwrap();
            let values: Vec<f32> =
                values.into_iter().map(|x| if name == "score.weight" { x.signum() * 3e38 } else { x }).collect();
            OutTensor {
                name: name.into(),
                dtype: Dtype::F32,
                shape,
                bytes: bytemuck::cast_slice(&values).to_vec().into(),
            }
        })
        .collect();
    drop(file);
    save(&path, &tensors, &Default::default()).unwrap();
    fs::write(home.join("texts"), "a good film\n").unwrap();
    refused(home, &format!("predict {model} texts --device cpu"), &["the logits of text 1 are not finite numbers"]);
    let data = json(home.join("trained/config.json"))["data"].as_str().unwrap().to_owned();
    refused(home, &format!("eval {model} --task sst2 --data {data} --device cpu"), &["not finite numbers"]);
}
