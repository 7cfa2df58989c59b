//! How often the host talks to the device in a training step.

use sparta_core::job::{Control, RunConfig, Silent};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::{Start, run};
use sparta_graph::{Backend, BackendError, BufferId, DType, DeviceInfo, Plan, PlanId, ReadId, Work};
use sparta_tests::command::{binary, command};
use std::path::Path;
use std::sync::{Arc, Mutex};

type Answer<T> = Result<T, BackendError>;

/// How often the host has talked to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Calls {
    submissions: i64,
    plans: i64,
    waits: i64,
    /// Writes and runs on their own.
    others: i64,
}

/// The CPU backend, counting.
struct Counting {
    cpu: sparta_backend_cpu::Cpu,
    calls: Arc<Mutex<Calls>>,
}

impl Counting {
    fn count(&self, add: impl FnOnce(&mut Calls)) {
        add(&mut self.calls.lock().unwrap());
    }
}

impl Backend for Counting {
    fn info(&self) -> DeviceInfo {
        self.cpu.info()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Answer<BufferId> {
        self.cpu.alloc(dtype, len, label)
    }

    fn free(&mut self, buffer: BufferId) {
        self.cpu.free(buffer);
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Answer<()> {
        self.count(|calls| calls.others += 1);
        self.cpu.write(buffer, offset, data)
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Answer<()> {
        self.count(|calls| calls.waits += 1);
        self.cpu.read(buffer, offset, out)
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Answer<PlanId> {
        self.cpu.prepare(plan, arena, externals)
    }

    fn run(&mut self, plan: PlanId) -> Answer<()> {
        self.count(|calls| calls.others += 1);
        self.cpu.run(plan)
    }

    fn submit(&mut self, work: &[Work]) -> Answer<()> {
        let plans = work.iter().filter(|piece| matches!(piece, Work::Run(_))).count() as i64;
        self.count(|calls| (calls.submissions, calls.plans) = (calls.submissions + 1, calls.plans + plans));
        self.cpu.submit(work)
    }

    fn request(&mut self, buffer: BufferId, offset: usize, bytes: usize) -> Answer<ReadId> {
        self.cpu.request(buffer, offset, bytes)
    }

    fn fetch(&mut self, read: ReadId, out: &mut [u8]) -> Answer<()> {
        self.count(|calls| calls.waits += 1);
        self.cpu.fetch(read, out)
    }

    fn release(&mut self, plan: PlanId) {
        self.cpu.release(plan);
    }
}

fn plugins() -> PluginSet {
    let beside = binary().parent().unwrap().to_owned();
    PluginSet::discover(&DiscoverOptions { beside: vec![beside], ..DiscoverOptions::default() })
}

/// What a run of the embedded job without evaluations and checkpoints before its end asks of the device.
fn calls_of(base: &RunConfig, home: &Path, steps: usize) -> Calls {
    let control = Control { max_steps: Some(steps), ..base.control.clone() };
    let config = RunConfig { control, out: home.join(format!("run-{steps}")), ..base.clone() };
    let calls = Arc::new(Mutex::new(Calls::default()));
    let open = || -> sparta_core::Result<Box<dyn Backend>> {
        Ok(Box::new(Counting { cpu: sparta_backend_cpu::Cpu::new(None)?, calls: calls.clone() }))
    };
    run(&config, &plugins(), &open, Start::New, &mut Silent).unwrap();
    let counted = calls.lock().unwrap();
    *counted
}

#[test]
fn a_step_is_one_submission_and_one_wait_whatever_the_number_of_micro_batches() {
    let home = tempfile::tempdir().unwrap();
    let args = ["run", "--method", "sparta", "--max-steps", "1", "--max-dev", "8", "--max-test", "8"];
    let args = [&args[..], &["--batch-size", "4", "--device", "cpu", "--out", "first"]].concat();
    assert!(command(home.path(), &args).output().unwrap().status.success());
    let config = RunConfig::of_run(&home.path().join("first")).unwrap();
    let long = 1000;
    let control = Control { checkpoint_interval: long, epochs: long, ..config.control };
    let config = RunConfig { control, eval_interval: Some(long), ..config };
    for (name, micro_batch_tokens, plans) in [("whole", config.micro_batch_tokens, 1), ("split", Some(1), 5)] {
        let base = RunConfig { micro_batch_tokens, ..config.clone() };
        let [few, many] = [10, 30].map(|steps| calls_of(&base, &home.path().join(name), steps));
        let expected = Calls { submissions: 20, plans: 20 * plans, waits: 20, others: 0 };
        let got = Calls {
            submissions: many.submissions - few.submissions,
            plans: many.plans - few.plans,
            waits: many.waits - few.waits,
            others: many.others - few.others,
        };
        assert_eq!(got, expected, "{name}: of 20 steps");
    }
}
