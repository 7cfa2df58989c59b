//! Several processes that train together write the same bytes as one: as threads of one process, and as real processes
//! under `mpiexec`. Needs `cargo build --release` first; `SPARTA_MPICH` names a directory that `.ci/mpich` made.

use sparta_core::Error;
use sparta_core::job::{EvalReport, Exchange, Observer, RunConfig, RunPlan, RunResult, StepReport, Stopped};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::{Start, run_together};
use sparta_core::team::{Team, threads};
use sparta_graph::Backend;
use sparta_tests::command::{binary, ran};
use sparta_tests::more;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(unix)]
#[path = "distributed/mpi.rs"]
mod mpi;

/// Steps of four micro-batches, with evaluations and checkpoints at different steps; the last step of an epoch has one
/// example, so one micro-batch.
const OPTIONS: &str = "--max-steps 10 --batch-size 8 --checkpoint-interval 3 --eval-interval 5 --max-train 33 --max-dev 40 \
                       --max-test 40 --patience 5 --micro-batches 4 --micro-batch-tokens 64 --device cpu";

/// Together, they cover every part of a step.
const METHODS: [&str; 8] = [
    "sparta",
    "sparta --weight-decay 0.1 --dropout 0.1 --schedule cosine",
    "lora --dropout 0.1",
    "full",
    "head",
    "head --dropout 0.1 --weight-decay 0.1",
    "lora --optimizer adamw-bf16 --precision bf16",
    "sparta --optimizer sgd --weight-decay 0.1 --group score.weight:lr=2,decay=0",
];

/// Asks to stop after a number of steps.
struct Watching {
    steps_left: usize,
    messages: Vec<String>,
}

impl Observer for Watching {
    fn plan(&mut self, _: &RunPlan) {}
    fn step(&mut self, _: &StepReport) {
        self.steps_left = self.steps_left.saturating_sub(1);
    }
    fn eval(&mut self, _: &EvalReport) {}
    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }
    fn stop_requested(&self) -> bool {
        self.steps_left == 0
    }
}

type Outcome = Result<RunResult, Error>;

/// Runs the configurations at the same time, each on a thread that stops after the given number of steps.
fn together(configs: &[(RunConfig, usize)], start: Start) -> Vec<Outcome> {
    let one = |((config, steps), communicator): (&(RunConfig, usize), _)| {
        let beside = vec![binary().parent().unwrap().to_owned()];
        let run = config.plugins.iter().filter_map(|used| used.library.clone()).collect();
        let plugins = PluginSet::discover(&DiscoverOptions { beside, run, ..DiscoverOptions::default() });
        let open = || -> Result<Box<dyn Backend>, Error> { Ok(Box::new(sparta_backend_cpu::Cpu::new(Some(1))?)) };
        let mut watching = Watching { steps_left: *steps, messages: Vec::new() };
        run_together(config, &plugins, &open, start, &mut watching, &mut Team::meet(communicator))
    };
    std::thread::scope(|scope| {
        let pairs = configs.iter().zip(threads(configs.len()));
        let all: Vec<_> = pairs.map(|pair| scope.spawn(move || one(pair))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn all_together(config: &RunConfig, size: usize, start: Start) -> Vec<RunResult> {
    let configs = vec![(config.clone(), usize::MAX); size];
    together(&configs, start).into_iter().map(|outcome| outcome.unwrap()).collect()
}

/// A run of one process, and its configuration for others.
fn alone(home: &Path, options: &str) -> RunConfig {
    ran(home, &format!("run {options} --out alone"));
    RunConfig::of_run(&home.join("alone")).unwrap()
}

const FILES: [&str; 3] = ["metrics.jsonl", "adapter/adapter.safetensors", "adapter/adapter.json"];

#[track_caller]
fn assert_equal_runs(what: &str, alone: &Path, other: &Path) {
    for file in FILES {
        let [a, b] = [alone, other].map(|run| fs::read(run.join(file)).unwrap());
        assert!(a == b, "{what}: {file} differs");
    }
}

fn at(config: &RunConfig, out: PathBuf) -> RunConfig {
    RunConfig { out, ..config.clone() }
}

#[test]
fn every_method_has_the_bytes_of_one_process() {
    for method in METHODS {
        let home = tempfile::tempdir().unwrap();
        let config = alone(home.path(), &format!("{OPTIONS} --method {method}"));
        for size in [2, 3] {
            let out = home.path().join(size.to_string());
            let results = all_together(&at(&config, out.clone()), size, Start::New);
            assert_equal_runs(&format!("{method}, {size} processes"), &config.out, &out);
            let same = |result: &RunResult| (result.steps, result.test.clone().map(|test| test.loss));
            assert!(results.iter().all(|result| same(result) == same(&results[0])), "{method}");
            assert!(results[1].exchanged.unwrap().bytes > 0, "{method}");
        }
    }
}

/// The gradients of all micro-batches of a step are exchanged at once, however many of them a process computes.
#[test]
fn a_step_exchanges_once() {
    let home = tempfile::tempdir().unwrap();
    let options = "--max-steps 5 --batch-size 8 --max-train 32 --max-dev 8 --max-test 8 --micro-batches 4 --device cpu";
    let config = alone(home.path(), options);
    let exchanges = [2, 4].map(|size| {
        let results = all_together(&at(&config, home.path().join(size.to_string())), size, Start::New);
        results[0].exchanged.unwrap().exchanges
    });
    assert_eq!(exchanges[0], exchanges[1]);
}

/// Methods that choose elements by scores, and that act between steps on gradients and moments.
#[test]
fn scores_and_acts_have_the_bytes_of_one_process() {
    let methods = [
        ("gradient-mask", "--score-batches 3 --share 0.02"),
        ("spiel", "--every 3 --rate 0.5 --density 0.05 --optimizer adamw-bf16 --precision bf16"),
        ("adalora", "--init-r 4 --target-r 2 --delta-t 2 --tfinal 2"),
    ];
    let directory = more::build();
    for (method, options) in methods {
        let home = tempfile::tempdir().unwrap();
        let plugin = more::library(&directory, method);
        let options = format!("{OPTIONS} {options} --plugin {} --method {method}", plugin.display());
        let config = alone(home.path(), &options);
        let out = home.path().join("two");
        all_together(&at(&config, out.clone()), 2, Start::New);
        assert_equal_runs(method, &config.out, &out);
    }
}

/// Each process computes its own share and adds up the sums of all; only the last bits may differ.
#[test]
fn a_fast_exchange_is_close() {
    let home = tempfile::tempdir().unwrap();
    let config = alone(home.path(), OPTIONS);
    let fast = RunConfig { exchange: Exchange::Fast, ..at(&config, home.path().join("fast")) };
    all_together(&fast, 3, Start::New);
    let losses = |run: &Path| -> Vec<f64> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["kind"] == "step").map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let [exact, fast] = [&config.out, &fast.out].map(|run| losses(run));
    assert_eq!(exact.len(), fast.len());
    // Adam turns a difference in the last bits of a gradient near zero into one of the size of a step, here 1e-3 at most.
    exact.iter().zip(&fast).for_each(|(a, b)| assert!((a - b).abs() < 1e-3 * a, "{a} and {b}"));
}

/// Stopped after some steps, then resumed by a different number of processes, and by one.
#[test]
fn a_different_number_of_processes_continues_with_the_same_bytes() {
    for method in ["sparta --dropout 0.1", "full --optimizer adamw-bf16"] {
        let home = tempfile::tempdir().unwrap();
        let config = alone(home.path(), &format!("{OPTIONS} --method {method}"));
        let out = home.path().join("run");
        let stopping = |size: usize, steps: usize| -> Vec<(RunConfig, usize)> {
            // Only the last process's user asks.
            (0..size)
                .map(|rank| (at(&config, out.clone()), if rank + 1 == size { steps } else { usize::MAX }))
                .collect()
        };
        for (configs, start) in [(stopping(3, 2), Start::New), (stopping(2, 4), Start::Resume)] {
            for outcome in together(&configs, start) {
                assert_eq!(outcome.unwrap().stopped, Stopped::Interrupted, "{method}");
            }
        }
        ran(home.path(), "run --resume run --device cpu");
        assert_equal_runs(method, &config.out, &out);
    }
}

/// The error names the process and what differs, and nothing starts.
#[test]
fn processes_that_differ_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let config = at(&alone(home.path(), OPTIONS), home.path().join("run"));
    let longer = RunConfig {
        control: sparta_core::job::Control { max_steps: Some(11), ..config.control.clone() },
        ..config.clone()
    };
    let seed = RunConfig { seed: 1, ..config.clone() };
    let data = RunConfig { max_train: Some(32), ..config.clone() };
    for (other, parts) in [
        (longer, ["max_steps is 10 for process 0", "11 for process 1"]),
        (seed, ["seed is 0 for process 0", "1 for process 1"]),
        (data, ["train data (SHA-256) is", "max_train is 33"]),
    ] {
        for outcome in together(&[(config.clone(), usize::MAX), (other, usize::MAX)], Start::New) {
            let text = outcome.unwrap_err().to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{parts:?}: {text}");
        }
        assert!(!config.out.exists());
    }
}

/// An error in one process ends all; rank 0 reports it, and has saved the last good state.
#[test]
fn a_process_that_fails_ends_all() {
    let home = tempfile::tempdir().unwrap();
    let config = at(&alone(home.path(), OPTIONS), home.path().join("run"));
    let elsewhere = RunConfig { model: home.path().join("nowhere"), ..config.clone() };
    let outcomes = together(&[(config.clone(), usize::MAX), (elsewhere, usize::MAX)], Start::New);
    let texts: Vec<String> = outcomes.into_iter().map(|outcome| outcome.unwrap_err().to_string()).collect();
    assert!(texts[0].contains("process 1 on this machine failed") && texts[0].contains("nowhere"), "{texts:?}");
    assert!(texts[1].contains("nowhere") && !texts[1].contains("process"), "{texts:?}");
    assert!(!config.out.exists());
}
