//! Training with kernels that were chosen by measuring: it gives the numbers of a run without them, records the
//! choices, and has the same bits after an interruption. Needs `cargo build --release` first.

use sparta_core::Result;
use sparta_core::job::{EvalReport, Observer, RunConfig, RunPlan, StepReport, Stopped};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::{self, Start};
use sparta_graph::{Backend, Tuned};
use sparta_tests::command::{binary, command};
use sparta_wgpu::{Options, WgpuBackend};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

const RECORD: &str = "tuning.json";
const ADAPTER: &str = "adapter/adapter.safetensors";

/// The embedded model and data, as the command resolves them, for a few steps.
fn config(home: &Path, method: &str) -> RunConfig {
    let out = home.join("resolved");
    let args = ["run", "--max-steps", "1", "--max-train", "64", "--max-dev", "8", "--max-test", "8", "--device", "cpu"];
    let output = command(home, &[&args[..], &["--method", method, "--out", out.to_str().unwrap()]].concat()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut config = RunConfig::of_run(&out).unwrap();
    config.control.max_steps = Some(6);
    config.control.checkpoint_interval = 3;
    config
}

/// Stops after a number of steps, and keeps what it is told.
struct Seen {
    until: usize,
    losses: Vec<f64>,
    messages: RefCell<Vec<String>>,
}

impl Observer for Seen {
    fn plan(&mut self, _: &RunPlan) {}
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
    }
    fn eval(&mut self, _: &EvalReport) {}
    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}
    fn message(&mut self, text: &str) {
        self.messages.borrow_mut().push(text.to_owned());
    }
    fn stop_requested(&self) -> bool {
        self.losses.len() >= self.until
    }
}

/// A run in `out`, up to a step, with choices stored in `cache`.
struct Run<'a> {
    config: &'a RunConfig,
    plugins: &'a PluginSet,
    cache: PathBuf,
}

impl Run<'_> {
    fn go(&self, out: &Path, start: Start, until: usize) -> (Stopped, Seen) {
        let config = RunConfig { out: out.to_owned(), ..self.config.clone() };
        let open = || -> Result<Box<dyn Backend>> {
            let device = WgpuBackend::open_with(0, Options::default()).map_err(sparta_core::Error::Device)?;
            Ok(Box::new(device.tuning_in(Some(self.cache.clone()))))
        };
        let mut seen = Seen { until, losses: vec![], messages: RefCell::default() };
        let result = run::run(&config, self.plugins, &open, start, &mut seen).unwrap();
        (result.stopped, seen)
    }
}

fn recorded(out: &Path) -> Tuned {
    serde_json::from_slice(&fs::read(out.join(RECORD)).unwrap()).unwrap()
}

fn plugins() -> PluginSet {
    let beside = binary().parent().unwrap().to_owned();
    PluginSet::discover(&DiscoverOptions { beside: vec![beside], ..DiscoverOptions::default() })
}

fn has_no_adapter() -> bool {
    let none = sparta_wgpu::devices().is_empty();
    if none {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
    }
    none
}

#[test]
fn a_tuned_run_has_the_numbers_of_an_untuned_one_and_its_record_says_what_was_chosen() {
    if has_no_adapter() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (tuned, plugins) = (config(home.path(), "sparta"), plugins());
    let by_rule = RunConfig { no_autotune: true, ..tuned.clone() };
    let losses = |config: &RunConfig, name: &str| {
        let run = Run { config, plugins: &plugins, cache: home.path().join("choices") };
        let (stopped, seen) = run.go(&home.path().join(name), Start::New, usize::MAX);
        assert_eq!((stopped, seen.losses.len()), (Stopped::Completed, 6));
        seen.losses
    };
    let found = losses(&tuned, "tuned").into_iter().zip(losses(&by_rule, "by-rule"));
    for (step, (tuned, by_rule)) in found.enumerate() {
        // As between the CPU and a graphics driver.
        assert!((tuned - by_rule).abs() < 1e-3, "step {}: {tuned} and {by_rule}", step + 1);
    }
    let record = recorded(&home.path().join("tuned"));
    let of = |kind: &str| record.choices.keys().filter(|name| name.starts_with(kind)).count();
    assert!(of("product ") > 0 && of("sampled_grad ") == 1, "{record:?}");
    assert!(!home.path().join("by-rule").join(RECORD).exists());
}

#[test]
fn a_resumed_run_keeps_the_choices_that_it_began_with() {
    if has_no_adapter() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (config, plugins) = (config(home.path(), "lora"), plugins());
    let cache = home.path().join("choices");
    let run = Run { config: &config, plugins: &plugins, cache: cache.clone() };
    let [whole, split, other] = ["whole", "split", "other"].map(|name| home.path().join(name));
    run.go(&whole, Start::New, usize::MAX);
    assert_eq!(run.go(&split, Start::New, 3).0, Stopped::Interrupted);
    assert_eq!(recorded(&split).device, recorded(&whole).device);

    // Another machine's cache would hold other choices.
    let file = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let mut stored: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for name in recorded(&split).choices.into_keys() {
        stored["choices"][name] = serde_json::json!({ "blocks": 1, "pieces": 3, "unroll": 1 });
    }
    fs::write(&file, stored.to_string()).unwrap();
    assert_eq!(run.go(&split, Start::Resume, usize::MAX).0, Stopped::Completed);
    run.go(&other, Start::New, usize::MAX);
    let bytes = |out: &Path| fs::read(out.join(ADAPTER)).unwrap();
    assert!(bytes(&whole) == bytes(&split), "the resumed run has different bits");
    assert!(bytes(&whole) != bytes(&other), "the other choices change nothing, so the test shows nothing");
    assert_eq!(recorded(&split), recorded(&whole));

    fs::write(&file, "no JSON").unwrap();
    fs::remove_dir_all(&other).unwrap();
    let messages = run.go(&other, Start::New, 1).1.messages.into_inner();
    let warning = messages.iter().find(|message| message.starts_with("warning: ")).unwrap();
    assert!(warning.contains(file.to_str().unwrap()) && warning.ends_with("measured again"), "{warning}");
}
