//! Tests and measures the program on a machine's GPUs: devices, whole steps, profiles, suites, and PyTorch. `run.sh`
//! has the usage. Each measurement is a separate process with a time limit, and the report is written after each, so
//! that results are kept if the machine is taken away.

mod child;
mod report;

use child::Child;
use clap::{Parser, ValueEnum};
use report::{Report, StepsCell};
use serde_json::Value as Json;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Devices,
    Products,
    Steps,
    Cpu,
    Peer,
    Tf32,
    Profile,
    Sanitizer,
    Suites,
    Untuned,
    F32,
}

#[derive(Parser)]
#[command(name = "run.sh")]
struct Args {
    /// What to do [default: all]
    parts: Vec<Part>,
    /// Only this device, for example wgpu:0 [default: steps on the best GPU, suites on each]
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The best card through CUDA and, beside it, the best through wgpu
    #[arg(long, conflicts_with = "device")]
    cuda: bool,
    /// Directory for gpu.json, gpu.md and the timelines
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Stop after this time; the report lists what did not run
    #[arg(long, value_name = "N", default_value = "8")]
    minutes: f64,
    /// Shapes for a software driver, and no peer
    #[arg(long)]
    tiny: bool,
    /// Folder with sparta-cli, steps and peer.py
    #[arg(long, hide = true)]
    programs: PathBuf,
}

/// A shape with its batch, as `steps` and the peer name it.
struct Workload {
    shape: &'static str,
    peer: &'static str,
    batch: usize,
    tokens: usize,
}

const WORKLOADS: [Workload; 3] = [
    Workload { shape: "gemma-2b", peer: "gemma-2b", batch: 16, tokens: 256 },
    Workload { shape: "110M", peer: "110m", batch: 4, tokens: 128 },
    Workload { shape: "SmolLM2-135M", peer: "smollm2-135m", batch: 8, tokens: 512 },
];
/// A shape for which portable trainers have been slower on a GPU than on the CPU beside it, with LoRA on all
/// projections.
const SMALL: Workload = Workload { shape: "SmolLM2-135M", peer: "smollm2-135m", batch: 1, tokens: 512 };
const LORA_ALL: &str = "lora-all";
const TINY: [Workload; 1] = [Workload { shape: "64,2,4,2,128,512", peer: "tiny", batch: 2, tokens: 16 }];

/// Names of the peer's methods, and the arguments of `steps`. Densities are of all parameters.
const METHODS: [(&str, &[&str]); 4] = [
    ("sparta-0.05", &["--method", "sparta", "--of-all", "--density", "0.05"]),
    ("sparta-0.005", &["--method", "sparta", "--of-all", "--density", "0.005"]),
    ("lora", &["--method", "lora"]),
    ("full", &["--method", "full"]),
];

/// The largest model, which is measured last, and with one method: the one at this position in `METHODS`.
const LARGE: Workload = Workload { shape: "mistral-7b", peer: "mistral-7b", batch: 8, tokens: 256 };
const OF_LARGE: usize = 1;

/// Variables that change a card's results (docs/cuda.md).
const VARIABLES: [&str; 2] = ["SPARTA_CUDA_GRAPHS", "SPARTA_CUDA_TUNE"];

/// The tests of `plugin check` whose products a vendor's library computes.
const PRODUCTS: [&str; 5] = [
    "conformance bf16: matrix products",
    "conformance bf16: chosen elements",
    "conformance tf32",
    "conformance f32: matrix products",
    "conformance bf16: attention",
];

/// What runs under compute-sanitizer: small shapes that use every kernel of a training step and its products.
const WATCHED: [&str; 2] = ["conformance bf16: attention", "golden bf16: training gemma sparta_adamw"];

/// The time limits of a single measurement, of a whole suite, and of one of its tests in seconds.
const CELL: Duration = Duration::from_secs(75);
const SUITE: Duration = Duration::from_secs(240);
const TEST: &str = "120";

struct Runner {
    args: Args,
    /// When the current part ends at the latest.
    end: Instant,
    report: Report,
}

fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let end = Instant::now() + Duration::from_secs_f64(60.0 * args.minutes);
    let mut parts = args.parts.clone();
    if parts.is_empty() {
        parts = Part::value_variants().to_vec();
        let for_cards = [Part::Peer, Part::Products, Part::Tf32, Part::Sanitizer];
        parts.retain(|part| !args.tiny || !for_cards.contains(part));
    }
    let mut runner = Runner { args, end, report: Report::default() };
    // The other parts need the list of devices.
    runner.devices()?;
    for (i, &part) in parts.iter().enumerate() {
        let now = Instant::now();
        let left = end.saturating_duration_since(now);
        // These would leave no time for what follows.
        let share = match part {
            Part::Products if i + 1 < parts.len() => 0.25,
            Part::Steps if i + 1 < parts.len() => 0.5,
            _ => 1.0,
        };
        runner.end = now + left.mul_f64(share);
        match part {
            Part::Devices => {}
            Part::Products => {
                runner.products()?;
                runner.suites(&PRODUCTS)?;
            }
            Part::Steps => runner.steps("bf16", true)?,
            Part::Cpu => runner.cpu()?,
            Part::Peer => runner.peer()?,
            Part::Tf32 => runner.tf32()?,
            Part::Profile => runner.profile("bf16")?,
            Part::Sanitizer => runner.sanitizer()?,
            Part::Suites => runner.suites(&[])?,
            Part::Untuned => runner.steps("bf16", false)?,
            Part::F32 => {
                runner.steps("f32", true)?;
                runner.profile("f32")?;
            }
        }
    }
    print!("{}", runner.report.markdown());
    if runner.args.tiny && !runner.report.failures.is_empty() {
        return Err("a part failed".into());
    }
    Ok(())
}

impl Runner {
    fn program(&self, name: &str) -> Command {
        Command::new(self.args.programs.join(name))
    }

    /// Runs a command within its limit and the remaining time, to success.
    fn run(&self, command: &mut Command, limit: Duration) -> std::result::Result<Child, String> {
        self.end_of(command, limit)?.success()
    }

    /// Runs a command whose output counts even if it fails.
    fn end_of(&self, command: &mut Command, limit: Duration) -> std::result::Result<Child, String> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left < Duration::from_secs(5) {
            return Err("not run: its time was up".into());
        }
        child::run(command, limit.min(left))
    }

    fn save(&self) -> Result<()> {
        let json = serde_json::to_vec_pretty(&self.report)?;
        std::fs::write(self.args.out.join("gpu.json"), json)?;
        std::fs::write(self.args.out.join("gpu.md"), self.report.markdown())?;
        Ok(())
    }

    fn failed(&mut self, what: &str, why: &str) -> Result<()> {
        eprintln!("{what}: {why}");
        self.report.failures.push(format!("{what}: {why}"));
        self.save()
    }

    fn devices(&mut self) -> Result<()> {
        let listed = self.run(self.program("sparta-cli").args(["devices", "--json"]), CELL)?;
        let devices: Vec<Json> = listed.last_line_as_json()?;
        self.report.devices = devices;
        let set = |name: &&str| Some(format!("`{name}={}`", std::env::var(name).ok()?));
        self.report.variables = VARIABLES.iter().filter_map(set).collect();
        if self.args.cuda && self.chosen()?.len() == 1 {
            return self.failed("wgpu", "no driver lists a GPU, so CUDA is measured alone");
        }
        self.save()
    }

    fn workloads(&self) -> &'static [Workload] {
        if self.args.tiny { &TINY } else { &WORKLOADS }
    }

    /// The workloads with their methods and the arguments of `steps`.
    fn cells(&self) -> Vec<(&'static Workload, &'static str, &'static [&'static str])> {
        let all = self.workloads().iter().flat_map(|work| METHODS.map(|(method, arguments)| (work, method, arguments)));
        let (method, arguments) = METHODS[OF_LARGE];
        all.chain((!self.args.tiny).then_some((&LARGE, method, arguments))).collect()
    }

    /// The devices for steps and profiles: one, the best if none is named, or with `--cuda` one of each backend. In a
    /// container, wgpu may have no driver, or a software one, which says nothing about the card.
    fn chosen(&self) -> Result<Vec<String>> {
        let named = self.args.device.as_deref();
        let best = |backend: &str| -> Result<String> {
            let id = |device: &Json| device["id"].as_str().unwrap_or_default().to_owned();
            let wanted = |id: &str| id.starts_with(backend) && named.is_none_or(|named| id == named);
            let serves = |device: &Json| !self.args.cuda || self.args.tiny || device["kind"] != "software_gpu";
            let found = self.report.devices.iter().filter(|device| wanted(&id(device)) && serves(device));
            let what = named.or(Some(backend)).filter(|what| !what.is_empty()).unwrap_or("at all");
            let best = found.min_by_key(|device| rank(device)).map(id);
            best.ok_or_else(|| format!("there is no device `{what}`").into())
        };
        if !self.args.cuda {
            return Ok(vec![best("")?]);
        }
        Ok([best("cuda:")?].into_iter().chain(best("wgpu:").ok()).collect())
    }

    /// Measures each workload on one device after the other, with kernels that were measured or that rules choose. The weights
    /// are bf16 on disk in either precision.
    fn steps(&mut self, precision: &str, autotune: bool) -> Result<()> {
        let mut ids = self.chosen()?;
        // Other backends have no choices.
        ids.retain(|id| autotune || id.starts_with("wgpu:"));
        for (work, method, arguments) in self.cells() {
            for id in &ids {
                let rules = if autotune { &[][..] } else { &["--no-autotune"] };
                self.step(id, work, precision, method, &[arguments, rules].concat())?;
            }
        }
        Ok(())
    }

    /// The small step on each device, and on the CPU beside it, whose faster precision counts.
    fn cpu(&mut self) -> Result<()> {
        let work = if self.args.tiny { &self.workloads()[0] } else { &SMALL };
        let cards = self.chosen()?.into_iter().filter(|id| id != "cpu").map(|id| (id, "bf16"));
        let on_cpu = ["bf16", "f32"].map(|precision| ("cpu".to_owned(), precision));
        for (id, precision) in cards.chain(on_cpu) {
            self.step(&id, work, precision, LORA_ALL, &["--method", LORA_ALL])?;
        }
        Ok(())
    }

    /// The rate of a large product on each device: what `bench` still measures if it skips every step as too long.
    fn products(&mut self) -> Result<()> {
        for id in self.chosen()? {
            let what = format!("product on {id}");
            eprintln!("{what}");
            let mut command = self.program("sparta-cli");
            command.args(["bench", "--json", "--steps-only", "--shape", "64,2,4,2,128,512:2x16", "--method", "lora"]);
            command.args(["--longest", "1e-12", "--device", &id, "--out"]).arg(self.args.out.join("products"));
            match self.run(&mut command, CELL).and_then(|child| child.last_line_as_json::<Json>()) {
                Ok(found) => {
                    let rate = found["devices"][0]["ceiling"]["bf16_flops"].as_f64().map(|flops| flops * 1e-12);
                    self.report.products.push((id, rate));
                    self.save()?;
                }
                Err(why) => self.failed(&what, &why)?,
            }
        }
        Ok(())
    }

    /// One step of each workload with products in TF32, and without, on the devices that have it.
    fn tf32(&mut self) -> Result<()> {
        let has = |id: &String| self.report.devices.iter().any(|device| device["id"] == **id && device["tf32"] == true);
        let ids: Vec<String> = self.chosen()?.into_iter().filter(has).collect();
        let (method, arguments) = METHODS[2];
        for work in self.workloads() {
            for (id, precision) in ids.iter().flat_map(|id| ["tf32", "f32"].map(|precision| (id, precision))) {
                self.step(id, work, precision, method, arguments)?;
            }
        }
        Ok(())
    }

    /// Runs small shapes under compute-sanitizer, for accesses out of bounds, and races in shared memory.
    fn sanitizer(&mut self) -> Result<()> {
        let cards: Vec<String> = self.chosen()?.into_iter().filter(|id| id.starts_with("cuda:")).collect();
        if cards.is_empty() {
            return Ok(());
        }
        if let Err(why) = self.run(Command::new("compute-sanitizer").arg("--version"), CELL) {
            return self.failed("sanitizer", &why);
        }
        for (id, tool) in cards.iter().flat_map(|id| ["memcheck", "racecheck"].map(|tool| (id, tool))) {
            let what = format!("compute-sanitizer {tool} on {id}");
            eprintln!("{what}");
            let mut command = Command::new("compute-sanitizer");
            command.args(["--tool", tool, "--error-exitcode", "86", "--target-processes", "all"]);
            command.arg(self.args.programs.join("sparta-cli")).args(["plugin", "check", "--device", id]);
            // Its three tests end before SUITE: if this process killed the sanitizer, the program that it watches might
            // be left running.
            command.args(WATCHED.iter().flat_map(|name| ["--test", name])).args(["--limit", "75"]);
            match self.end_of(&mut command, SUITE) {
                Ok(child) => {
                    self.report.profiles.push((what.clone(), child.stdout));
                    if let Some(why) = child.failure {
                        self.failed(&what, &why)?;
                    }
                }
                Err(why) => self.failed(&what, &why)?,
            }
            self.save()?;
        }
        Ok(())
    }

    fn step(&mut self, id: &str, work: &Workload, precision: &str, method: &str, arguments: &[&str]) -> Result<()> {
        let untuned = arguments.contains(&"--no-autotune");
        let rules = if untuned { ", kernels by rule" } else { "" };
        let what = format!("steps {} {method} {precision} on {id}{rules}", work.shape);
        eprintln!("{what}");
        let mut command = self.steps_command(work, id, precision);
        command.args(arguments);
        // Its weights are written first, which may take longer than a cell.
        let limit = if work.shape == LARGE.shape { SUITE } else { CELL };
        let measured = self.run(&mut command, limit).and_then(|child| {
            // Such as that CUDA cannot record steps, which explains what was measured.
            child.stderr.lines().filter(|line| line.starts_with("warning: ")).for_each(|line| eprintln!("{line}"));
            child.last_line_as_json()
        });
        match measured {
            Ok(measured) => {
                let [device, method, precision] = [id, method, precision].map(str::to_owned);
                self.report.steps.push(StepsCell { device, cell: work.cell(), method, precision, untuned, measured });
                self.save()
            }
            Err(why) => self.failed(&what, &why),
        }
    }

    fn steps_command(&self, work: &Workload, device: &str, precision: &str) -> Command {
        let mut command = self.program("steps");
        let seconds = if self.args.tiny { "0.2" } else { "3" };
        command.args(["--shape", work.shape, "--device", device, "--seconds", seconds, "--at-least", "3"]);
        command.args(["--batch", &work.batch.to_string(), "--tokens", &work.tokens.to_string()]);
        command.args(["--weights", "bf16", "--precision", precision]).env("SPARTA_BENCH_DIR", &self.args.programs);
        command
    }

    /// Profiles a SpaRTA step of the first workload.
    fn profile(&mut self, precision: &str) -> Result<()> {
        let work = &self.workloads()[0];
        for id in self.chosen()? {
            let (method, arguments) = METHODS[0];
            let what = format!("profile {} {method} {precision} on {id}", work.shape);
            eprintln!("{what}");
            let trace = self.args.out.join(format!("trace-{}-{precision}.json", id.replace(':', "-")));
            let mut command = self.steps_command(work, &id, precision);
            command.args(arguments).arg("--profile").arg(trace);
            match self.run(&mut command, CELL) {
                Ok(child) => self.report.profiles.push((what, child.stderr)),
                Err(why) => self.failed(&what, &why)?,
            }
            self.save()?;
        }
        Ok(())
    }

    /// Conformance and golden data on each adapter: the tests of these names, or all.
    fn suites(&mut self, names: &[&str]) -> Result<()> {
        let ids: Vec<String> = match &self.args.device {
            Some(id) => vec![id.clone()],
            None if self.args.cuda => self.chosen()?,
            None => {
                // Software drivers would take the time of the cards.
                let wanted = |device: &&Json| match device["kind"].as_str() {
                    Some("cpu") => false,
                    Some("software_gpu") => self.args.tiny,
                    _ => true,
                };
                let devices = self.report.devices.iter().filter(wanted);
                devices.filter_map(|device| device["id"].as_str()).map(str::to_owned).collect()
            }
        };
        for id in &ids {
            eprintln!("suites on {id}");
            let mut command = self.program("sparta-cli");
            command.args(["plugin", "check", "--json", "--limit", TEST, "--device", id]);
            command.args(names.iter().flat_map(|name| ["--test", name]));
            if self.args.tiny && names.is_empty() {
                command.args(["--test", "elementwise", "--test", "classifier gemma"]);
            }
            let failure = match self.end_of(&mut command, SUITE) {
                Ok(child) => self.keep_suite(id, child),
                Err(why) => Some(why),
            };
            if let Some(why) = failure {
                self.failed(&format!("suites on {id}"), &why)?;
            }
            self.save()?;
        }
        Ok(())
    }

    /// Keeps what a check has found; returns why it failed, as it does if a test fails.
    fn keep_suite(&mut self, id: &str, child: Child) -> Option<String> {
        match child.last_line_as_json() {
            Ok(result) => {
                self.report.suites.push((id.to_owned(), result));
                child.failure
            }
            // It was killed, but has printed each test that it finished.
            Err(why) => Some(format!("{}\n{}", child.failure.unwrap_or(why), child.stderr)),
        }
    }

    fn peer(&mut self) -> Result<()> {
        let check = "import torch, transformers, peft; assert torch.cuda.is_available(), 'torch sees no GPU'";
        if let Err(why) = self.run(Command::new("python3").args(["-c", check]), CELL) {
            return self.failed("peer", &why);
        }
        let product = self.run(self.peer_command().arg("--product"), CELL);
        match product.and_then(|child| child.last_line_as_json::<Json>()) {
            Ok(line) => self.report.peer_product = line["tflop_s"].as_f64(),
            Err(why) => self.failed("peer, product", &why)?,
        }
        let methods = METHODS.map(|(method, _)| method);
        let (large, _) = METHODS[OF_LARGE];
        self.peer_cells(&SMALL, &[LORA_ALL])?;
        self.workloads().iter().try_for_each(|work| self.peer_cells(work, &methods))?;
        self.peer_cells(&LARGE, &[large])
    }

    /// One process for all methods, since its imports take longer than a cell.
    fn peer_cells(&mut self, work: &Workload, methods: &[&str]) -> Result<()> {
        let what = format!("peer {}", work.peer_cell());
        eprintln!("{what}");
        let mut command = self.peer_command();
        command.args(["--no-ceilings", "--cells", &work.peer_cell(), "--methods", &methods.join(",")]);
        let child = match self.end_of(&mut command, SUITE) {
            Ok(child) => child,
            Err(why) => return self.failed(&what, &why),
        };
        let lines: Vec<Json> = child.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for method in methods {
            let line = lines.iter().find(|line| line["method"] == **method);
            match line.map(|line| (line, line["failed"].as_str())) {
                Some((line, None)) => self.report.peer.push((work.cell(), (*method).to_owned(), line.clone())),
                Some((_, Some(why))) => self.failed(&format!("{what} {method}"), why)?,
                None => {
                    let why = child.failure.as_deref().unwrap_or("it printed no line");
                    self.failed(&format!("{what} {method}"), why)?;
                }
            }
        }
        self.save()
    }

    fn peer_command(&self) -> Command {
        let mut command = Command::new("python3");
        command.arg(self.args.programs.join("peer.py"));
        command
    }
}

/// The order of preference for devices: a GPU before a software driver; of one card's entries, the one
/// that `--device auto` means.
fn rank(device: &Json) -> (u8, bool) {
    let kind = match device["kind"].as_str() {
        Some("discrete_gpu") => 0,
        Some("integrated_gpu") => 1,
        Some("virtual_gpu" | "other") => 2,
        Some("software_gpu") => 3,
        _ => 4,
    };
    (kind, device["auto"] != true)
}

impl Workload {
    fn cell(&self) -> String {
        format!("{} {}x{}", self.shape, self.batch, self.tokens)
    }

    fn peer_cell(&self) -> String {
        format!("{}:{}x{}", self.peer, self.batch, self.tokens)
    }
}
