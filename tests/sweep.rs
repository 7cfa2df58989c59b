//! `sparta-cli sweep`, end to end on the embedded job: a grid with one failing run, continued and interrupted; and the
//! event files of `run --tensorboard`. Needs `cargo build --release` first.

use serde_json::Value;
use sparta_tests::command::{command, ran};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

/// Three runs; a learning rate of 1e30 gives a loss that is not a number.
const GRID: &str = "
[base]
max-steps = 6
eval-interval = 3
max-train = 96
max-dev = 20
max-test = 20

[[grid]]
name = 'Sparse'
method = 'sparta'
lr = [1e-3, 1e30]

[[grid]]
method = 'head'
";

fn sweep(home: &Path, more: &[&str]) -> Output {
    fs::write(home.join("grid.toml"), GRID).unwrap();
    let args = [&["sweep", "grid.toml", "--out", "out", "--device", "cpu", "--json"], more].concat();
    command(home, &args).stdin(Stdio::null()).output().unwrap()
}

fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The directories of the runs.
fn runs(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let mut runs: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    runs.sort();
    runs
}

#[test]
fn a_sweep_keeps_failures_and_continues_where_it_stopped() {
    let home = tempfile::tempdir().unwrap();
    let first = sweep(home.path(), &["--jobs", "2"]);
    let found = summary(&first);
    let counts = |found: &Value| ["finished", "failed", "not_finished"].map(|key| found[key].as_u64().unwrap());
    assert_eq!(counts(&found), [2, 1, 0], "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(found["best"].as_array().unwrap().len(), 2);
    let table = fs::read_to_string(home.path().join("out/comparison.md")).unwrap();
    for part in ["| Sparse |", "| head |", "sst2 accuracy", "lr 0.001", "failed", "the loss is NaN"] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    let csv = fs::read_to_string(home.path().join("out/comparison.csv")).unwrap();
    assert!(csv.starts_with("run,method,task,setting,state,best,metric,"), "{csv}");
    assert_eq!(csv.lines().filter(|line| line.contains(",finished,true,accuracy,")).count(), 2, "{csv}");
    assert!(home.path().join("out/report.html").is_file());

    // A finished run is not touched; one that was interrupted, as its missing result shows, is continued.
    let runs = runs(home.path());
    assert_eq!(runs.len(), 3);
    let [head, sparse]: [&PathBuf; 2] = ["head", "sparta"].map(|method| {
        let finished = |run: &&PathBuf| run.join("result.json").exists() && run.to_str().unwrap().contains(method);
        runs.iter().find(finished).unwrap()
    });
    let log = fs::read(sparse.join("metrics.jsonl")).unwrap();
    let time = |run: &Path| fs::metadata(run.join("result.json")).unwrap().modified().unwrap();
    let before = time(head);
    fs::remove_file(sparse.join("result.json")).unwrap();
    let second = sweep(home.path(), &[]);
    assert_eq!(counts(&summary(&second)), [2, 1, 0]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("2 of 3 runs are already done") && said.contains("resume  "), "{said}");
    assert_eq!(time(head), before);
    assert_eq!(fs::read(sparse.join("metrics.jsonl")).unwrap(), log);

    // A failed run is repeated only on request.
    let third = sweep(home.path(), &["--retry"]);
    assert_eq!(counts(&summary(&third)), [2, 1, 0]);
    assert_eq!(String::from_utf8_lossy(&third.stderr).matches("failed  ").count(), 1);
}

#[test]
fn a_dry_run_lists_and_mistakes_are_reported_before_anything_runs() {
    let home = tempfile::tempdir().unwrap();
    let listed = sweep(home.path(), &["--dry-run"]);
    assert_eq!(summary(&listed).as_array().unwrap().len(), 3);
    assert!(!home.path().join("out").exists());
    for (set, part) in [
        ("epocs=3", "epoch"),
        ("lr=-1", "number above 0"),
        ("out=x", "the sweep sets this option"),
        ("lr", "KEY=VALUE"),
    ] {
        let wrong = sweep(home.path(), &["--set", set]);
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert_eq!(wrong.status.code(), Some(2), "{set}: {said}");
        assert!(said.contains(part), "{set}: {said}");
        assert!(!home.path().join("out").exists());
    }
}

#[test]
fn a_run_ends_cleanly_when_its_input_closes() {
    let home = tempfile::tempdir().unwrap();
    let args = ["run", "--until-eof", "--device", "cpu", "--out", "run", "--json", "--max-steps", "100000"];
    let ended = command(home.path(), &args).stdin(Stdio::null()).output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    let result: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(result["stopped"], "interrupted");
}

#[test]
fn event_files_change_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let run = |out: &str, more: &[&str]| {
        let args = ["run", "--device", "cpu", "--max-steps", "4", "--max-dev", "20", "--max-test", "20", "--out", out];
        let output = command(home.path(), &[&args[..], more].concat()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        home.path().join(out)
    };
    let [plain, logged] = [run("plain", &[]), run("logged", &["--tensorboard"])];
    for file in ["metrics.jsonl", "adapter/adapter.safetensors", "config.json"] {
        assert!(fs::read(plain.join(file)).unwrap() == fs::read(logged.join(file)).unwrap(), "{file} differs");
    }
    let events = |run: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_str().unwrap().contains("events.out.tfevents.")).collect()
    };
    assert!(events(&plain).is_empty());
    let bytes = fs::read(&events(&logged)[0]).unwrap();
    let count = |tag: &str| bytes.windows(tag.len()).filter(|window| *window == tag.as_bytes()).count();
    assert_eq!([count("train/loss"), count("train/grad_norm"), count("test/accuracy")], [4, 4, 1]);
    assert_eq!([count("_hparams_/session_start_info"), count("| density | 0.05 |")], [1, 1]);
    // A finished run has the same curves, made from its metrics.
    ran(home.path(), "report plain --tensorboard");
    let later = fs::read(&events(&plain)[0]).unwrap();
    for tag in ["train/loss", "train/grad_norm", "test/accuracy"] {
        assert_eq!(later.windows(tag.len()).filter(|window| *window == tag.as_bytes()).count(), count(tag), "{tag}");
    }
}

#[test]
fn the_dashboard_needs_a_terminal() {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path(), &["run", "--tui"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tui needs a terminal"));
}

/// `script` provides a terminal; when it is killed, the terminal is gone.
#[cfg(target_os = "linux")]
#[test]
fn a_run_whose_terminal_goes_away_ends_and_is_saved() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["run", "--tui", "--device", "cpu", "--out", "run", "--max-steps", "100000", "--epochs", "100000"];
    let inner = command(home.path(), &[]);
    let line = format!("exec {} {}", inner.get_program().to_str().unwrap(), arguments.join(" "));
    let mut script = std::process::Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .current_dir(home.path())
        .envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let Ok(mut terminal) = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn() else {
        return sparta_tests::skipped("there is no `script` to provide a terminal");
    };
    let run = home.path().join("run");
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(120), "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("no step was done", &|| fs::metadata(run.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0));
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    wait("the run did not end", &|| run.join("result.json").exists());
    let result: Value = serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["stopped"], "interrupted");
    // The lock goes with the process.
    let lock = || fs::File::open(run.join(".lock")).is_ok_and(|file| file.try_lock().is_ok());
    wait("the process did not end", &lock);
}
