//! `sparta-cli bench`.

use crate::comm::{self, CommArgs};
use crate::devices;
use crate::output::{Output, warn};
use clap::{Args, Subcommand};
use sparta_core::bench::{
    self, Bencher, Comparison, MethodCase, Outcome, Report, Request, Shape, Trajectories, Workload,
};
use sparta_core::device::Devices;
use sparta_core::job::config::{DEVICE, OUTPUT, positive};
use sparta_core::job::{Environment, thousands};
use sparta_core::plugin::PluginSet;
use sparta_core::weights::atomic_write;
use sparta_core::{Error, Result};
use sparta_graph::{DeviceInfo, DeviceKind, memory_size};
use sparta_model::Precision;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<BenchCommand>,
    /// Finish within a minute: small models, two methods, one precision
    #[arg(long)]
    quick: bool,
    /// Models, each with its standard batch or as SHAPE:BATCHxTOKENS [default: 15M, SmolLM2-135M, 110M, 1.1B, gemma-2b,
    /// mistral-7b]; a shape without a name is hidden,layers,heads,kv_heads,intermediate,vocab:BATCHxTOKENS
    #[arg(long = "shape", value_name = "SHAPE", value_parser = Workload::parse)]
    shapes: Vec<Workload>,
    /// full, lora (rank 8 on q and v), lora-all (rank 8 on every projection), sparta-0.05, sparta-0.005 [default: all]
    #[arg(long = "method", value_name = "NAME", value_parser = MethodCase::parse)]
    methods: Vec<MethodCase>,
    /// f32, bf16 [default: those that the device supports]
    #[arg(long = "precision", value_name = "TYPE", value_parser = precision)]
    precisions: Vec<Precision>,
    /// Skip the single ops
    #[arg(long)]
    steps_only: bool,
    /// Time each step for X seconds [default: 5; 1 with --quick]
    #[arg(long, value_name = "X", value_parser = positive)]
    seconds: Option<f64>,
    /// Skip steps that take more than X seconds even at the device's ceiling [default: 20; 0.3 with --quick]
    #[arg(long, value_name = "X", value_parser = positive)]
    longest: Option<f64>,
    /// A device, or `all` [default: every GPU, and the CPU]
    #[arg(long, value_name = "D", help_heading = DEVICE)]
    device: Option<String>,
    /// Choose kernels by rules, without measuring which are fastest on the device
    #[arg(long, help_heading = DEVICE)]
    no_autotune: bool,
    /// Directory for bench.json and bench.html
    #[arg(long, value_name = "DIR", default_value = ".", help_heading = OUTPUT)]
    out: PathBuf,
    /// Print the report as one line of JSON on stdout, and everything else on stderr
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
    /// Add the device's trajectories to this file of stored ones, without measuring
    #[arg(long, value_name = "FILE", hide = true)]
    record: Option<PathBuf>,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Compare reports of several machines in one table
    Compare(CompareArgs),
    /// Predict the steps of several processes: the computation is measured on one device, the link is simulated
    Comm(CommArgs),
}

#[derive(Args)]
struct CompareArgs {
    /// bench.json of each machine
    #[arg(value_name = "BENCH.json", required = true)]
    reports: Vec<PathBuf>,
    /// Also write the comparison as a page
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Print the comparison as one line of JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Shapes measured with --quick.
const QUICK_SHAPES: [&str; 2] = ["15M", "110M"];
const QUICK_METHODS: [&str; 2] = ["lora", "sparta-0.05"];
/// Shapes whose ops are measured singly; with --quick only the first.
const KERNELS: [&str; 2] = ["110M", "gemma-2b"];

/// Those that are compared: few devices have TF32.
fn precision(name: &str) -> std::result::Result<Precision, String> {
    match name {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::BF16),
        _ => Err(format!("expected f32 or bf16, got `{name}`")),
    }
}

pub fn bench(args: BenchArgs, plugins: &PluginSet) -> Result<()> {
    match args.what {
        Some(BenchCommand::Compare(args)) => return compare(args),
        Some(BenchCommand::Comm(args)) => return comm::comm(&args, plugins),
        None => {}
    }
    let output = Output::new(args.json);
    let found = devices::find(plugins);
    let chosen = choose(&args, &found)?;
    let progress = |what: &str| eprintln!("  {what}");
    let bencher = Bencher { plugins, devices: &found, autotune: !args.no_autotune, progress: &progress };
    if let Some(file) = &args.record {
        return record(&args, &bencher, chosen[0], file);
    }
    if args.out.is_file() {
        return Err(Error::Usage(format!("--out {}: expected a directory, got a file", args.out.display())));
    }
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out))?;
    let environment = Environment::of_this_process();
    let mut report = Report {
        sparta_bench: bench::VERSION,
        program: environment.version,
        system: environment.system,
        date: chrono::Local::now().format("%Y-%m-%d").to_string(),
        devices: Vec::new(),
    };
    for (i, &info) in chosen.iter().enumerate() {
        eprintln!("{} ({})", info.name, info.id);
        let wanted = request(&args, info)?;
        let begun = match bencher.begin(info) {
            Ok(begun) => begun,
            // The last one's error is that of the command if none could be measured.
            Err(error) if report.devices.is_empty() && i + 1 == chosen.len() => return Err(error),
            Err(error) => {
                warn(format!("{} ({}) is left out: {error}", info.name, info.id));
                continue;
            }
        };
        let done = report.clone();
        let measured = bencher.measure(&wanted, info, begun, |device| {
            let mut so_far = done.clone();
            so_far.devices.push(device.clone());
            save(&args.out, &so_far)
        })?;
        report.devices.push(measured);
    }
    let comparison = Comparison::new(std::slice::from_ref(&report));
    print(&output, &comparison)?;
    output.say(format!("report     {}", args.out.join("bench.html").display()))?;
    output.result(&report)
}

/// The devices to measure, in the order of their listing.
fn choose<'a>(args: &BenchArgs, found: &'a Devices) -> Result<Vec<&'a DeviceInfo>> {
    let chosen: Vec<_> = match args.device.as_deref() {
        Some("all") => found.distinct().collect(),
        Some(wanted) => vec![found.select(wanted)?],
        None => found.distinct().filter(|info| info.kind != DeviceKind::SoftwareGpu).collect(),
    };
    if chosen.is_empty() { Err(Error::Usage("there is no device to measure".into())) } else { Ok(chosen) }
}

fn request(args: &BenchArgs, info: &DeviceInfo) -> Result<Request> {
    let quick = args.quick;
    let workloads = match (args.shapes.is_empty(), quick) {
        (false, _) => args.shapes.clone(),
        (true, true) => QUICK_SHAPES.into_iter().map(Workload::parse).collect::<Result<_>>()?,
        (true, false) => Workload::standard().collect(),
    };
    let methods = match (args.methods.is_empty(), quick) {
        (false, _) => args.methods.clone(),
        (true, true) => QUICK_METHODS.into_iter().map(MethodCase::parse).collect::<Result<_>>()?,
        (true, false) => MethodCase::standard().collect(),
    };
    let fastest = if info.products.is_empty() { Precision::F32 } else { Precision::BF16 };
    let precisions = match (args.precisions.is_empty(), quick) {
        (false, _) => Some(args.precisions.clone()),
        (true, true) => Some(vec![fastest]),
        (true, false) => None,
    };
    let kernels = KERNELS.iter().take(if quick { 1 } else { KERNELS.len() });
    let kernels =
        if args.steps_only { vec![] } else { kernels.map(|name| Shape::parse(name)).collect::<Result<_>>()? };
    Ok(Request {
        workloads,
        methods,
        precisions,
        kernels,
        seconds: args.seconds.unwrap_or(if quick { 1.0 } else { 5.0 }),
        longest: args.longest.unwrap_or(if quick { 0.3 } else { 20.0 }),
    })
}

fn record(args: &BenchArgs, bencher: &Bencher, device: &DeviceInfo, file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).map_err(Error::io(file))?;
    let wrong = |e: serde_json::Error| Error::Usage(format!("{}: {e}", file.display()));
    let mut stored: Trajectories = serde_json::from_str(&text).map_err(wrong)?;
    stored.extend(bencher.record(&request(args, device)?, device)?);
    let lines: Vec<String> = stored
        .iter()
        .map(|(key, steps)| Ok(format!("  {}: {}", serde_json::to_string(key)?, serde_json::to_string(steps)?)))
        .collect::<std::result::Result<_, _>>()
        .map_err(wrong)?;
    let text = format!("{{\n{}\n}}\n", lines.join(",\n"));
    atomic_write(file, |out| out.write_all(text.as_bytes()).map_err(Error::io(file)))
}

fn compare(args: CompareArgs) -> Result<()> {
    let output = Output::new(args.json);
    let reports = args.reports.iter().map(|path| Report::read(path)).collect::<Result<Vec<_>>>()?;
    let comparison = Comparison::new(&reports);
    print(&output, &comparison)?;
    if let Some(out) = &args.out {
        write(out, bench::html(&comparison)?.as_bytes())?;
        output.say(format!("page       {}", out.display()))?;
    }
    output.result(&comparison)
}

fn save(directory: &Path, report: &Report) -> Result<()> {
    let json = serde_json::to_vec_pretty(report)
        .map_err(|e| Error::Usage(format!("the report cannot be written as JSON: {e}")))?;
    write(&directory.join("bench.json"), &json)?;
    let page = bench::html(&Comparison::new(std::slice::from_ref(report)))?;
    write(&directory.join("bench.html"), page.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic_write(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}

/// As Markdown, to be pasted into a message.
fn print(output: &Output, comparison: &Comparison) -> Result<()> {
    let names: Vec<String> = comparison.titles().iter().map(|title| title.replace('|', "/")).collect();
    output.say("\n| device | f32 GFLOP/s | bf16 GFLOP/s | GB/s | driver |\n|---|---|---|---|---|")?;
    for (entry, name) in comparison.devices.iter().zip(&names) {
        let bf16 = entry.bf16_gflops.map_or("-".into(), |gflops| thousands(gflops.round() as u64));
        let (f32, memory) = (thousands(entry.f32_gflops.round() as u64), entry.gb_per_s);
        let driver = entry.device.driver.replace('|', "/");
        output.say(format!("| {name} | {f32} | {bf16} | {memory:.0} | {driver} |"))?;
    }
    let columns = names.iter().map(|name| format!(" {name}: tokens/s (share of the ceiling, memory) |"));
    output.say(format!("\n| step | precision |{}", columns.collect::<String>()))?;
    output.say(format!("|---|---|{}", "---|".repeat(names.len())))?;
    for row in &comparison.steps {
        let cells = row.steps.iter().map(|step| format!(" {} |", step.as_ref().map_or("-".into(), cell)));
        output.say(format!("| {} | {} |{}", row.cell, row.precision, cells.collect::<String>()))?;
    }
    Ok(())
}

fn cell(step: &bench::Step) -> String {
    match &step.outcome {
        Outcome::NotMeasured(why) => why.replace(['|', '\n'], " "),
        Outcome::Measured(figures) => {
            let (speed, share) = (thousands(figures.measured.tokens_per_s.round() as u64), figures.share_of_ceiling);
            let joules = figures.joules.map(|joules| format!(", {joules:.1} J per step")).unwrap_or_default();
            let checked = if figures.checked { "" } else { ", not compared" };
            format!("{speed} ({:.0} %, {}{joules}{checked})", 100.0 * share, memory_size(figures.memory))
        }
    }
}
