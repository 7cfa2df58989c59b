//! `sparta-cli plugin check`, to be run on a library before it is published.
//!
//! The library is loaded only in child processes, one per test, so that a crash or a hang is one failed test.

use super::child::{self, Ended, Input, NOTE, REFUSED, SKIPPED};
use super::jobs;
use crate::devices;
use crate::output::{self, Output};
use clap::Args;
use serde::{Deserialize, Serialize};
use sparta_core::device::Devices;
use sparta_core::plugin::{DiscoverOptions, PluginKind, PluginSet, State};
use sparta_core::{Error, Result};
use sparta_graph::ops::OwnKernel;
use sparta_graph::{Backend, BackendError, DeviceInfo};
use sparta_suites::plugin::{self, Ending, Outcome};
use sparta_suites::{Subject, list};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct CheckArgs {
    /// The library [default: the device that --device selects, among the installed backends]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Device to check, among those that the library offers [default: its best]
    #[arg(long, value_name = "D")]
    device: Option<String>,
    /// Data for the task to read; for a method with --model, training data [default: none; the built-in reviews]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Model to train with the method or on the task [default: the built-in one]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Task of --data: the one to check, if the library has several; for a method, the one to train [default: sst2]
    #[arg(long, value_name = "ID")]
    pub task: Option<String>,
    /// Only tests with TEXT in their names; may be repeated
    #[arg(long, value_name = "TEXT")]
    test: Vec<String>,
    /// Time limit of a test, in seconds
    #[arg(long, value_name = "N", default_value = "300")]
    pub limit: u64,
    /// Print one JSON object as the last line on stdout, and everything else on stderr
    #[arg(long)]
    json: bool,
    /// The work of a child process: `load`, `list`, or the name of a test
    #[arg(long, hide = true, value_name = "WHAT")]
    child: Option<String>,
}

/// A library's contents, as its first child process reports them.
#[derive(Serialize, Deserialize)]
struct Contents {
    plugins: Vec<Plugin>,
    device: Option<String>,
    tests: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Plugin {
    kind: PluginKind,
    name: String,
    version: String,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    contents: Contents,
    results: Vec<TestResult>,
}

#[derive(Serialize)]
struct TestResult {
    name: String,
    passed: bool,
    /// The test does not apply; `details` says why. It counts as passed.
    skipped: bool,
    seconds: f64,
    /// Why it failed, or remarks.
    details: String,
}

/// Errors: a library that cannot be loaded, or that fails a test.
pub fn check(args: &CheckArgs, explicit: &[PathBuf], plugins: &PluginSet) -> Result<()> {
    match args.child.as_deref() {
        Some("load") => args.path.as_deref().map_or(Ok(()), |path| load(path).map(drop)),
        Some("list") => output::json_line(&contents(args, plugins)?),
        Some(name) => run_test(args, name, plugins),
        None => check_all(args, explicit),
    }
}

/// `explicit` is what `--plugin` names.
fn check_all(args: &CheckArgs, explicit: &[PathBuf]) -> Result<()> {
    let output = Output::new(args.json);
    let list = child::run(&arguments(args, explicit, "list"), args.limit, Input::Closed)?;
    if !list.passed() {
        return Err(refusal(&list, args.limit, args.path.as_deref()));
    }
    let contents: Contents = serde_json::from_str(list.stdout.trim().lines().last().unwrap_or_default())
        .map_err(|e| Error::Plugin(format!("the list of tests cannot be read: {e}")))?;
    for Plugin { kind, name, version } in &contents.plugins {
        output.say(format!("{kind} {name} {version}"))?;
    }
    let device = contents.device.iter().map(|device| format!(" on {device}")).collect::<String>();
    output.say(format!("{} tests{device}", contents.tests.len()))?;
    let mut results = vec![];
    for name in &contents.tests {
        let ended = child::run(&arguments(args, explicit, name), args.limit, Input::Open)?;
        ended.stderr.lines().for_each(|line| tracing::info!("{name}: {line}"));
        let passed = ended.passed();
        let details = if passed { ended.said() } else { ended.why(args.limit) };
        let skipped = passed && details.starts_with(SKIPPED);
        let (mark, said) = match (passed, skipped) {
            (true, false) => ("passed ", details.lines().next().unwrap_or_default()),
            (true, true) => ("skipped", details.trim_start_matches(SKIPPED)),
            // The whole reason is printed now, as a later test may hang.
            (false, _) => ("FAILED ", details.as_str()),
        };
        output.say(format!("{mark} {:>6.1} s  {name}  {said}", ended.seconds).trim_end())?;
        results.push(TestResult { name: name.clone(), passed, skipped, seconds: ended.seconds, details });
    }
    let count = |what: fn(&TestResult) -> bool| results.iter().filter(|result| what(result)).count();
    let (all, failed, skipped) = (results.len(), count(|result| !result.passed), count(|result| result.skipped));
    output.result(&Report { contents, results })?;
    match failed {
        0 => output.say(format!("passed: {}, skipped: {skipped}", all - skipped)),
        n => Err(Error::Plugin(format!("{n} of {all} tests failed"))),
    }
}

/// Loads a library in a child process, where a crash or a hang does no harm.
///
/// Errors: it cannot be loaded.
pub fn try_load(path: &Path) -> Result<()> {
    let arguments = ["plugin", "check", "--child", "load"].map(OsString::from).into_iter();
    let ended = child::run(&arguments.chain([path.into()]).collect::<Vec<_>>(), LOADING, Input::Closed)?;
    if ended.passed() { Ok(()) } else { Err(refusal(&ended, LOADING, Some(path))) }
}

/// The seconds that a library may take to load before it is installed.
const LOADING: u64 = 60;

/// Why the first child process failed. A child that crashed or hung could not name the library.
fn refusal(ended: &Ended, limit: u64, path: Option<&Path>) -> Error {
    let why = ended.why(limit);
    match (ended.status.and_then(|status| status.code()), path) {
        (Some(2), _) => Error::Usage(why),
        (Some(1), _) | (_, None) => Error::Plugin(why),
        (_, Some(path)) => Error::Plugin(format!("{}: {why}", path.display())),
    }
}

/// The arguments of the child process for one part of the check.
fn arguments(args: &CheckArgs, explicit: &[PathBuf], what: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["plugin", "check", "--child", what].map(Into::into).into();
    let mut add = |option: &str, value: &std::ffi::OsStr| arguments.extend([option.into(), value.to_owned()]);
    explicit.iter().for_each(|path| add("--plugin", path.as_os_str()));
    args.device.iter().for_each(|device| add("--device", device.as_ref()));
    args.data.iter().for_each(|path| add("--data", path.as_os_str()));
    args.model.iter().for_each(|path| add("--model", path.as_os_str()));
    args.task.iter().for_each(|task| add("--task", task.as_ref()));
    args.test.iter().for_each(|test| add("--test", test.as_ref()));
    add("--limit", args.limit.to_string().as_ref());
    arguments.extend(args.path.iter().map(|path| path.as_os_str().to_owned()));
    arguments
}

// ---- in a child process

/// The library's plugins, the device under test, and the tests.
fn contents(args: &CheckArgs, plugins: &PluginSet) -> Result<Contents> {
    let Some(path) = &args.path else {
        let Some(wanted) = &args.device else {
            return Err(Error::Usage("give a library, or a device of an installed backend with --device".into()));
        };
        let device = devices::find(plugins).select(wanted)?.clone();
        let tests = selected(args, backend_tests().collect())?;
        return Ok(Contents { plugins: vec![], device: Some(device.id), tests });
    };
    let set = load(path)?;
    let found = set.report().iter();
    let loaded = found.filter_map(|found| {
        Some(Plugin { kind: found.kind?, name: found.name.clone(), version: found.version.clone() })
    });
    let meant =
        |kind, subject: &str| kind != PluginKind::Task || args.task.as_deref().is_none_or(|task| task == subject);
    let own = plugin::tests(&set).into_iter().filter(|test| meant(test.kind, &test.subject));
    let runs = jobs::tests(&set).into_iter().filter(|job| meant(job.kind, &job.subject));
    let mut tests: Vec<String> = own.map(|test| test.name()).chain(runs.map(|job| job.name())).collect();
    if let Some(task) = args.task.as_ref().filter(|_| tests.is_empty() && set.backends().is_empty()) {
        return Err(Error::Usage(format!("{}: it has no task `{task}`", path.display())));
    }
    let mut device = None;
    if !set.backends().is_empty() {
        device = Some(select(&Devices::find(vec![], &set), args, &set)?.id);
        tests.extend(backend_tests());
    }
    Ok(Contents { plugins: loaded.collect(), device, tests: selected(args, tests)? })
}

fn backend_tests() -> impl Iterator<Item = String> {
    list::tests().into_iter().map(|test| test.name)
}

/// Those that --test names.
fn selected(args: &CheckArgs, names: Vec<String>) -> Result<Vec<String>> {
    if let Some(text) = args.test.iter().find(|text| !names.iter().any(|name| name.contains(*text))) {
        return Err(Error::Usage(format!("no test has `{text}` in its name; there are: {}", names.join(", "))));
    }
    Ok(names.into_iter().filter(|name| args.test.is_empty() || args.test.iter().any(|t| name.contains(t))).collect())
}

/// The plugins of this library alone.
fn load(path: &Path) -> Result<PluginSet> {
    let set = PluginSet::discover(&DiscoverOptions { explicit: vec![path.to_owned()], ..DiscoverOptions::default() });
    for found in set.report() {
        if let State::Refused { reason } = &found.state {
            return Err(Error::Plugin(format!("{}: {reason}", found.path.display())));
        }
    }
    Ok(set)
}

/// The device to check, among those of the library.
fn select(devices: &Devices, args: &CheckArgs, library: &PluginSet) -> Result<DeviceInfo> {
    let wanted = args.device.as_deref().or(library.backends().first().map(|backend| &*backend.info().name));
    devices.select(wanted.unwrap_or_default()).cloned()
}

/// Runs one test. Failures go to stderr; refusals, skips and remarks to stdout.
fn run_test(args: &CheckArgs, name: &str, plugins: &PluginSet) -> Result<()> {
    let library = args.path.as_deref().map(load).transpose()?;
    if let Some((path, library)) = args.path.as_deref().zip(library.as_ref()) {
        if let Some(test) = plugin::tests(library).iter().find(|test| test.name() == name) {
            return conclude(plugin::run(test, library, args.data.as_deref(), &|| kernel_devices(plugins)));
        }
        if let Some(job) = jobs::tests(library).iter().find(|job| job.name() == name) {
            return conclude(jobs::run(job, path, args));
        }
    }
    let test = list::tests().into_iter().find(|test| test.name == name);
    let test = test.ok_or_else(|| Error::Usage(format!("there is no test `{name}`")))?;
    let (devices, device) = match &library {
        Some(library) => {
            let devices = Devices::find(vec![], library);
            let device = select(&devices, args, library)?;
            (devices, device)
        }
        None => {
            let devices = devices::find(plugins);
            let device = devices.select(args.device.as_deref().unwrap_or_default())?.clone();
            (devices, device)
        }
    };
    let open = || {
        devices.open(&device).map_err(|error| match error {
            Error::Device(error) => error,
            other => BackendError::Other { device: device.id.clone(), reason: other.to_string() },
        })
    };
    let mut subject = Subject::new(&device.id, open).may_refuse(&[""]);
    let outcome = test.run(&mut subject, plugins);
    for refused in &outcome.refused {
        output::print(format!("{REFUSED}{refused}"))?;
    }
    match outcome.failures.len() {
        0 => Ok(()),
        n => Err(Error::Plugin(format!("{n} failures\n{}", outcome.failures.join("\n")))),
    }
}

/// The devices besides the CPU on which a method's own kernels can run.
fn kernel_devices(plugins: &PluginSet) -> Vec<Box<dyn Backend>> {
    let devices = devices::find(plugins);
    let other = |device: &&DeviceInfo| device.own_kernels.contains(&OwnKernel::Wgsl);
    // One that does not open runs no kernels.
    devices.list().filter(other).filter_map(|device| devices.open(device).ok()).collect()
}

fn conclude(outcome: Outcome) -> Result<()> {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    match outcome {
        Ok(note) if note.is_empty() => Ok(()),
        Ok(note) => output::print(format!("{NOTE}{}", line(&note))),
        Err(Ending::Skipped(why)) => output::print(format!("{SKIPPED}{}", line(&why))),
        Err(Ending::Failed(what)) => Err(Error::Plugin(what)),
    }
}
