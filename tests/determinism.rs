//! Equal runs give equal bytes, repeatedly and with any number of threads; the seed decides everything random.

use serde_json::Value;
use sparta_core::job::RunConfig;
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::{Prepared, prepare};
use sparta_core::train::Session;
use sparta_graph::Backend;
use sparta_tests::command::{binary, command};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A small run with everything that is random, and with steps that are split into micro-batches.
const OPTIONS: &str = "--max-steps 6 --batch-size 8 --micro-batch-tokens 96 --dropout 0.1 --weight-decay 0.01 \
                       --eval-interval 3 --checkpoint-interval 2 --max-train 200 --max-dev 24 --max-test 24";

/// `method` is a name, possibly followed by options.
fn run(home: &Path, name: &str, method: &str, device: &str, threads: &str) -> PathBuf {
    let out = home.join(name);
    let mut args = vec!["run", "--device", device, "--out", out.to_str().unwrap(), "--method"];
    args.extend(method.split_whitespace().chain(OPTIONS.split_whitespace()));
    let output = command(home, &args).env("RAYON_NUM_THREADS", threads).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// The files of a run by name, without what depends on the clock, the number of threads or the directory's name.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let bytes = fs::read(&path).unwrap();
            match name.as_str() {
                "report.html" | "counters.json" => {}
                "plan.json" => drop(files.insert(name, without(&bytes, &["device"]))),
                "result.json" => {
                    let clock = ["tokens_per_second", "training_seconds", "peak_resident", "out", "adapter"];
                    files.insert(name, without(&bytes, &clock));
                }
                _ => drop(files.insert(name, bytes)),
            }
        }
    }
    files
}

fn without(json: &[u8], keys: &[&str]) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(json).unwrap();
    let object = value.as_object_mut().unwrap();
    keys.iter().for_each(|key| drop(object.remove(*key).unwrap_or_else(|| panic!("no {key}"))));
    value.to_string().into_bytes()
}

#[track_caller]
fn assert_equal(what: &str, a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    for name in
        ["adapter/adapter.safetensors", "metrics.jsonl", "result.json", "checkpoints/step-00000006/checkpoint.json"]
    {
        assert!(a.contains_key(name), "{name} is not there");
    }
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{what}: {name} differs");
    }
}

#[test]
fn equal_runs_on_the_cpu_are_equal_whatever_the_threads() {
    let home = tempfile::tempdir().unwrap();
    for method in ["sparta", "lora", "full", "head", "sparta --precision bf16", "full --precision bf16"] {
        let one = run(home.path(), &format!("{method}-1"), method, "cpu", "1");
        let result: Value = serde_json::from_slice(&fs::read(one.join("result.json")).unwrap()).unwrap();
        let check = |key: &str| result["merge_check"][key].as_f64().unwrap_or_else(|| panic!("{method}: no {key}"));
        assert!(check("largest_difference") <= check("bound"), "{method}: the merged model is a different one");
        for (name, threads) in [("again", "1"), ("two", "2"), ("four", "4")] {
            let other = run(home.path(), &format!("{method}-{name}"), method, "cpu", threads);
            assert_equal(&format!("{method}, {name}"), &one, &other);
        }
    }
}

#[test]
fn equal_runs_on_wgpu_are_equal() {
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    for method in ["sparta", "lora", "full", "head"] {
        let [a, b] = ["a", "b"].map(|name| run(home.path(), &format!("{method}-{name}"), method, "wgpu", "2"));
        assert_equal(method, &a, &b);
    }
}

/// Predictions of one adapter, as text and with all digits.
#[test]
fn equal_predictions() {
    let home = tempfile::tempdir().unwrap();
    let out = run(home.path(), "run", "sparta", "cpu", "2");
    let texts = home.path().join("texts");
    fs::write(&texts, "a wonderful film .\nthe food was cold and dull\nnot bad at all\n").unwrap();
    let predict = |threads: &str| {
        let args = ["predict", out.to_str().unwrap(), texts.to_str().unwrap(), "--json", "--device", "cpu"];
        let output = command(home.path(), &args).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let first = predict("1");
    assert_eq!(first.iter().filter(|&&byte| byte == b'\n').count(), 3);
    assert!(first == predict("1") && first == predict("2") && first == predict("4"));
}

fn prepared(home: &Path, seed: u64) -> Prepared {
    let config = RunConfig::of_run(&home.join("run")).unwrap();
    let config = RunConfig { seed, dropout: 0.3, micro_batch_tokens: Some(4096), ..config };
    let beside = binary().parent().unwrap().to_owned();
    let plugins = PluginSet::discover(&DiscoverOptions { beside: vec![beside], ..DiscoverOptions::default() });
    let cpu: sparta_backend_cpu::Cpu = sparta_backend_cpu::Cpu::new(None).unwrap();
    prepare(&config, &plugins, &cpu.info()).unwrap()
}

fn session(run: &Prepared) -> Session {
    let cpu: Box<dyn Backend> = Box::new(sparta_backend_cpu::Cpu::new(None).unwrap());
    Session::open(cpu, &run.weights, run.setup.clone(), &run.arena).unwrap()
}

/// Everything random is the same for the same seed and differs for another.
#[test]
fn the_seed_decides_everything() {
    use sparta_core::splits::permutation;

    let home = tempfile::tempdir().unwrap();
    run(home.path(), "run", "sparta", "cpu", "2");
    let runs = [0, 0, 1].map(|seed| prepared(home.path(), seed));
    let same_and_other = |what: &str, values: [Vec<u8>; 3]| {
        assert!(!values[0].is_empty(), "{what}");
        assert!(values[0] == values[1], "{what}: differs for one seed");
        assert!(values[0] != values[2], "{what}: the same for another seed");
    };
    let tokens = |split: fn(&Prepared) -> &Vec<sparta_core::train::Encoded>| {
        runs.each_ref().map(|run| {
            split(run).iter().flat_map(|e| e.tokens.iter().flat_map(|t| t.to_le_bytes())).collect::<Vec<u8>>()
        })
    };
    same_and_other("the training split", tokens(|run| &run.train));
    same_and_other("the dev split", tokens(|run| &run.dev));
    same_and_other("the test split", tokens(|run| &run.test));
    let sets = |run: &Prepared| -> Vec<u8> {
        let sets = run.setup.adaptation.index_sets();
        sets.into_values().flat_map(|set| set.indices.iter().flat_map(|i| i.to_le_bytes())).collect()
    };
    same_and_other("the index sets", runs.each_ref().map(sets));
    for epoch in ["0", "1"] {
        let order = |run: &Prepared| -> Vec<u8> {
            let order = permutation(run.config.seed, "order", epoch, run.train.len());
            order.into_iter().flat_map(|i| (i as u32).to_le_bytes()).collect()
        };
        same_and_other("the order", runs.each_ref().map(order));
    }
    let head = |run: &Prepared| -> Vec<u8> {
        session(run).trained_values().unwrap()["score.weight"].iter().flat_map(|x| x.to_le_bytes()).collect()
    };
    same_and_other("the initial head", runs.each_ref().map(head));

    // Only dropout: the same weights and batch with a different seed.
    let batch = runs[0].setup.objective.pack(&runs[0].train[..8]).unwrap();
    let values = session(&runs[0]).trained_values().unwrap();
    let loss = |seed: u64| -> Vec<u8> {
        let mut setup = runs[0].setup.clone();
        setup.seed = seed;
        let cpu: Box<dyn Backend> = Box::new(sparta_backend_cpu::Cpu::new(None).unwrap());
        let mut session = Session::open(cpu, &runs[0].weights, setup, &runs[0].arena).unwrap();
        session.set_trained_values(&values).unwrap();
        session.step(std::slice::from_ref(&batch), 0.0).unwrap().loss.to_le_bytes().to_vec()
    };
    same_and_other("dropout", [0, 0, 1].map(loss));
}
