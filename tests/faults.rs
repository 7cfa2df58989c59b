//! Devices that fail or silently do nothing, and memory that must not grow.

use sparta_core::job::{Control, EvalReport, Observer, RunConfig, RunPlan, RunResult, StepReport};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::{Start, run};
use sparta_graph::{Backend, BackendError, BufferId, DType, DeviceInfo, Plan, PlanId};
use sparta_tests::command::{binary, command};
use std::cell::Cell;
use std::fs;
use std::path::Path;

type Answer<T> = Result<T, BackendError>;

/// How a device fails after a number of plans.
#[derive(Clone, Copy)]
enum Fault {
    Lost,
    /// It reports success and does nothing.
    Idle,
    /// [`WEIGHT`] holds a NaN from then on.
    Poisoned,
    /// [`WEIGHT`] holds a NaN while one plan runs.
    PoisonedOnce,
}

/// A weight that LoRA does not change.
const WEIGHT: &str = "model.layers.1.mlp.down_proj.weight";
const NAN: [u8; 2] = half::bf16::NAN.to_le_bytes();

/// The CPU backend with a fault.
struct Faulty {
    cpu: sparta_backend_cpu::Cpu,
    fault: Fault,
    good_runs: usize,
    /// Where [`WEIGHT`] is.
    weight: Option<BufferId>,
}

impl Backend for Faulty {
    fn info(&self) -> DeviceInfo {
        self.cpu.info()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Answer<BufferId> {
        let buffer = self.cpu.alloc(dtype, len, label)?;
        if label == WEIGHT {
            self.weight = Some(buffer);
        }
        Ok(buffer)
    }

    fn free(&mut self, buffer: BufferId) {
        self.cpu.free(buffer);
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Answer<()> {
        self.cpu.write(buffer, offset, data)
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Answer<()> {
        self.cpu.read(buffer, offset, out)
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Answer<PlanId> {
        self.cpu.prepare(plan, arena, externals)
    }

    fn run(&mut self, plan: PlanId) -> Answer<()> {
        match (self.good_runs.checked_sub(1), self.fault) {
            (Some(left), _) => {
                self.good_runs = left;
                self.cpu.run(plan)
            }
            (None, Fault::Idle) => Ok(()),
            (None, Fault::Poisoned) => {
                self.cpu.write(self.weight.unwrap(), 0, &NAN)?;
                self.cpu.run(plan)
            }
            (None, Fault::PoisonedOnce) => {
                let (weight, mut good) = (self.weight.unwrap(), [0; 2]);
                self.cpu.read(weight, 0, &mut good)?;
                self.cpu.write(weight, 0, &NAN)?;
                self.cpu.run(plan)?;
                self.good_runs = usize::MAX;
                self.cpu.write(weight, 0, &good)
            }
            (None, Fault::Lost) => Err(BackendError::DeviceLost {
                device: "cpu".into(),
                during: "a run".into(),
                reason: "the plug was pulled".into(),
            }),
        }
    }

    fn release(&mut self, plan: PlanId) {
        self.cpu.release(plan);
    }
}

/// Keeps the messages, and the resident memory after each step.
#[derive(Default)]
struct Watching {
    messages: Vec<String>,
    resident: Vec<u64>,
}

impl Observer for Watching {
    fn plan(&mut self, _: &RunPlan) {}
    fn step(&mut self, _: &StepReport) {
        self.resident.extend(resident());
    }
    fn eval(&mut self, _: &EvalReport) {}
    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

/// `VmRSS` of this process in KiB.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// The configuration of a run of the embedded job, which is made in `home`.
fn config(home: &Path, steps: usize) -> RunConfig {
    let args = ["run", "--method", "sparta", "--max-steps", "1", "--max-dev", "8", "--max-test", "8"];
    let args = [&args[..], &["--schedule", "constant", "--device", "cpu", "--out", "first"]].concat();
    assert!(command(home, &args).output().unwrap().status.success());
    let config = RunConfig::of_run(&home.join("first")).unwrap();
    let control = Control { max_steps: Some(steps), checkpoint_interval: 4, epochs: 1000, ..config.control };
    RunConfig { control, ..config }
}

/// Trains on devices of which the first `faulty` fail after a number of plans.
fn train(
    config: &RunConfig,
    faulty: usize,
    fault: Fault,
    good_runs: usize,
) -> (sparta_core::Result<RunResult>, Watching) {
    let beside = binary().parent().unwrap().to_owned();
    let plugins = PluginSet::discover(&DiscoverOptions { beside: vec![beside], ..DiscoverOptions::default() });
    let opened = Cell::new(0);
    let open = || -> sparta_core::Result<Box<dyn Backend>> {
        opened.set(opened.get() + 1);
        let good_runs = if opened.get() <= faulty { good_runs } else { usize::MAX };
        Ok(Box::new(Faulty { cpu: sparta_backend_cpu::Cpu::new(None)?, fault, good_runs, weight: None }))
    };
    let mut watching = Watching::default();
    let result = run(config, &plugins, &open, Start::New, &mut watching);
    (result, watching)
}

#[test]
fn a_lost_device_is_opened_once_more_and_nothing_changes() {
    let home = tempfile::tempdir().unwrap();
    let base = config(home.path(), 12);
    let at = |name: &str| RunConfig { out: home.path().join(name), ..base.clone() };
    train(&at("good"), 0, Fault::Lost, 0).0.unwrap();
    // Failures before the first checkpoint, between two, and devices that only pretend to work.
    for (name, fault, good_runs) in [("early", Fault::Lost, 2), ("late", Fault::Lost, 9), ("idle", Fault::Idle, 6)] {
        let (result, watching) = train(&at(name), 1, fault, good_runs);
        result.unwrap();
        assert!(
            watching.messages.iter().any(|m| m.contains("reopening the device")),
            "{name}: {:?}",
            watching.messages
        );
        for file in ["metrics.jsonl", "adapter/adapter.safetensors"] {
            let [a, b] = ["good", name].map(|run| fs::read(home.path().join(run).join(file)).unwrap());
            assert!(a == b, "{name}: {file} differs");
        }
    }
}

#[test]
fn a_device_that_is_lost_twice_or_lies_ends_the_run() {
    let home = tempfile::tempdir().unwrap();
    let base = config(home.path(), 12);
    for (name, fault, part) in
        [("lost", Fault::Lost, "the plug was pulled"), ("idle", Fault::Idle, "it should have copied")]
    {
        let config = RunConfig { out: home.path().join(name), ..base.clone() };
        let text = train(&config, 2, fault, 6).0.unwrap_err().to_string();
        assert!(text.contains(part) && text.contains("second time") && text.contains("--resume"), "{text}");
    }
}

fn with(config: &RunConfig, change: impl FnOnce(&mut Control)) -> RunConfig {
    let mut config = config.clone();
    change(&mut config.control);
    config
}

fn lora(config: RunConfig) -> RunConfig {
    RunConfig { method: "lora".into(), method_options: Default::default(), ..config }
}

/// Seven plans are four steps, the trial of their state, and two steps more.
const UNTIL_STEP_7: usize = 7;

#[test]
fn nan_ends_the_run_with_step_op_and_tensor_and_the_last_good_state() {
    let home = tempfile::tempdir().unwrap();
    let base = lora(config(home.path(), 12));
    let at = |name: &str| home.path().join(name);
    train(&RunConfig { out: at("four"), ..with(&base, |control| control.max_steps = Some(4)) }, 0, Fault::Lost, 0)
        .0
        .unwrap();

    let poisoned = RunConfig { out: at("poisoned"), ..base.clone() };
    let text = train(&poisoned, 1, Fault::Poisoned, UNTIL_STEP_7).0.unwrap_err().to_string();
    let cause = format!("op `linear` of layers.1.mlp in the forward pass, which reads {WEIGHT}");
    for part in ["after step 6: step 7: the loss is NaN", &cause, "the last good state, after step 4, is saved"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let adapter = |run: &str| fs::read(at(run).join("adapter/adapter.safetensors")).unwrap();
    assert!(adapter("poisoned") == adapter("four"));

    let early = RunConfig { out: at("early"), ..base };
    let text = train(&early, 1, Fault::Poisoned, 0).0.unwrap_err().to_string();
    assert!(text.contains("step 1: the loss is NaN") && text.contains("none is saved"), "{text}");
    assert!(!at("early").join("adapter").exists() && !at("early").join("checkpoints").exists());
}

#[test]
fn a_batch_that_gives_nan_is_skipped_and_counted_on_request() {
    let home = tempfile::tempdir().unwrap();
    let skipping = with(&lora(config(home.path(), 12)), |control| control.skip_nonfinite = true);
    let base = RunConfig { out: home.path().join("run"), ..skipping };
    let (result, watching) = train(&base, 1, Fault::PoisonedOnce, UNTIL_STEP_7);
    let result = result.unwrap();
    assert_eq!((result.steps, result.skipped_steps), (12, 1));
    let told = |part: &str| watching.messages.iter().any(|message| message.contains(part));
    assert!(told("step 7: the loss is NaN") && told("skipped (1 so far)"), "{:?}", watching.messages);
    let log = fs::read_to_string(home.path().join("run/metrics.jsonl")).unwrap();
    assert!(log.lines().nth(6).unwrap().contains(r#""step":7,"total_steps":12,"epoch":0,"loss":null"#), "{log}");
    assert!(home.path().join("run/report.html").exists(), "the report reads the log");
}

/// A learning rate that ruins the weights: ruined values are never saved.
#[test]
fn an_update_that_overflows_is_never_saved() {
    let home = tempfile::tempdir().unwrap();
    let base = RunConfig { lr: Some(1e30), method: "full".into(), ..lora(config(home.path(), 12)) };
    for (name, checkpoint_interval, part) in [("late", 100, "op `"), ("at once", 1, "the update made")] {
        let config = RunConfig {
            out: home.path().join(name),
            ..with(&base, |control| control.checkpoint_interval = checkpoint_interval)
        };
        let text = train(&config, 0, Fault::Lost, 0).0.unwrap_err().to_string();
        assert!(text.contains(part) && text.contains("lower --lr") && text.contains("none is saved"), "{text}");
        assert!(!config.out.join("adapter").exists() && !config.out.join("checkpoints").exists());
    }
}

/// Once there is a plan for every batch size, resident memory grows by less than 1 KiB per step: 10 MB in 10,000 steps.
#[test]
fn memory_does_not_grow() {
    let home = tempfile::tempdir().unwrap();
    let config = with(&config(home.path(), 3000), |control| control.checkpoint_interval = 50);
    let config = RunConfig { out: home.path().join("long"), ..config };
    let (result, watching) = train(&config, 0, Fault::Lost, 0);
    assert_eq!(result.unwrap().steps, 3000);
    if watching.resident.is_empty() {
        sparta_tests::skipped("the system does not report the resident memory");
        return;
    }
    let samples = &watching.resident[1500..];
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / samples.len() as f64;
    let (x, y) = (mean(&mut (0..samples.len()).map(|i| i as f64)), mean(&mut samples.iter().map(|&r| r as f64)));
    let covariance: f64 = samples.iter().enumerate().map(|(i, &r)| (i as f64 - x) * (r as f64 - y)).sum();
    let variance: f64 = (0..samples.len()).map(|i| (i as f64 - x).powi(2)).sum();
    let slope = covariance / variance;
    println!("resident memory: {} KiB, slope {slope:.3} KiB a step", y.round());
    assert!(slope < 1.0, "resident memory grows by {slope:.2} KiB a step");
}
