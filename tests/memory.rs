//! A job whose files are all in memory computes and writes the same as with files on disk.

use serde_json::json;
use sparta_backend_cpu::Cpu;
use sparta_core::files::{self, MEMORY};
use sparta_core::job::{RunConfig, Silent, Stopped};
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, AdaptedModel, EvalRequest, Start};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn plugins() -> PluginSet {
    let mut plugins = PluginSet::default();
    for entry in [sparta_method_sparta::entry, sparta_task_glue::entry] {
        // SAFETY: entry points that the SDK wrote, of crates that are part of this test.
        unsafe { plugins.link(entry) };
    }
    plugins
}

/// Trains and evaluates below `root`, and returns the files that it then has.
fn job(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let plugins = plugins();
    let options = json!({ "max-steps": 4, "checkpoint-interval": 2, "max-dev": 20, "max-test": 20, "patience": 5 });
    let config = RunConfig {
        model: root.join("model"),
        data: root.join("data"),
        task: "sst2".into(),
        method: "sparta".into(),
        out: root.join("run"),
        ..RunConfig::of_options(&serde_json::from_value(options).unwrap()).unwrap()
    };
    let open = || Ok(Box::new(Cpu::new(Some(1))?) as Box<dyn sparta_graph::Backend>);
    let result = run::run(&config, &plugins, &open, Start::New, &mut Silent).unwrap();
    assert_eq!((result.stopped, result.steps), (Stopped::Completed, 4));
    let resumed = RunConfig::of_run(&config.out).unwrap();
    assert_eq!(run::run(&resumed, &plugins, &open, Start::Resume, &mut Silent).unwrap().steps, 4);

    let adapted = AdaptedModel::open(&config.out, None, &plugins).unwrap();
    let request = EvalRequest {
        split: "test".into(),
        head: None,
        task: None,
        data: None,
        task_options: BTreeMap::new(),
        max_examples: None,
    };
    let metrics = run::evaluate(&adapted, &request, &plugins, open().unwrap(), |_, _| {}).unwrap();
    assert_eq!(Some(metrics), result.test);
    let mut found = BTreeMap::new();
    collect(&config.out, &config.out, &mut found);
    found
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for path in files::list(dir).unwrap() {
        match files::is_dir(&path) {
            true => collect(root, &path, found),
            false => {
                drop(found.insert(path.strip_prefix(root).unwrap().to_owned(), files::read(&path, 1 << 30).unwrap()))
            }
        }
    }
}

#[test]
fn a_run_in_memory_is_the_run_on_disk() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets");
    let dir = tempfile::tempdir().unwrap();
    let memory = Path::new(MEMORY).join("job");
    let (mut model, mut data) = (BTreeMap::new(), BTreeMap::new());
    collect(&assets.join("model"), &assets.join("model"), &mut model);
    collect(&assets.join("data"), &assets.join("data"), &mut data);
    for (part, inside) in [("model", model), ("data", data)] {
        for (name, bytes) in inside {
            let on_disk = dir.path().join(part).join(&name);
            files::create_dirs(on_disk.parent().unwrap()).unwrap();
            std::fs::write(on_disk, &bytes).unwrap();
            files::put(&memory.join(part).join(&name), bytes).unwrap();
        }
    }
    let (on_disk, in_memory) = (job(dir.path()), job(&memory));
    assert_eq!(on_disk.keys().collect::<Vec<_>>(), in_memory.keys().collect::<Vec<_>>());
    // The others name the places, or the time that was taken.
    for name in ["metrics.jsonl", "adapter/adapter.safetensors", "checkpoints/step-00000004/state.safetensors"] {
        let name = Path::new(name);
        assert!(on_disk[name] == in_memory[name], "{}", name.display());
    }
}

#[test]
fn options_by_name_have_the_ranges_of_the_command_line() {
    let of = |options| RunConfig::of_options(&serde_json::from_value(options).unwrap());
    let config = of(json!({ "epochs": 7, "lr": null, "skip-nonfinite": true, "schedule": "cosine" })).unwrap();
    assert_eq!((config.control.epochs, config.lr, config.batch_size), (7, None, 16));
    assert!(config.control.skip_nonfinite);
    for (options, said) in
        [(json!({ "epochs": 0 }), "--epochs"), (json!({ "epoch": 1 }), "--epoch"), (json!({ "lr": "x" }), "--lr")]
    {
        let error = of(options).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
