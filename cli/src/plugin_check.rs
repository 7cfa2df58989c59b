//! `sparta-cli plugin check`: what a library's author runs before publishing it.
//!
//! The library is loaded only in child processes, one for each test, so that one which crashes or hangs is a failed test.

use crate::devices;
use crate::output::{self, Output};
use clap::Args;
use serde::{Deserialize, Serialize};
use sparta_core::device::Devices;
use sparta_core::method::options;
use sparta_core::plugin::{DiscoverOptions, PluginKind, PluginSet, State};
use sparta_core::{Error, Result};
use sparta_graph::{BackendError, DeviceInfo};
use sparta_suites::Subject;
use sparta_suites::list::tests;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

#[derive(Args)]
pub struct CheckArgs {
    /// The library [default: what --device means, with the backends that are installed]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Device to check, of those that the library offers [default: its best]
    #[arg(long, value_name = "D")]
    device: Option<String>,
    /// Only tests with TEXT in their names; may be repeated
    #[arg(long, value_name = "TEXT")]
    test: Vec<String>,
    /// Seconds that a test may take
    #[arg(long, value_name = "N", default_value = "300")]
    limit: u64,
    /// Print one JSON object as the last line on stdout, and text for people on stderr
    #[arg(long)]
    json: bool,
    /// What a child process does: `list`, or the name of a test
    #[arg(long, hide = true, value_name = "WHAT")]
    child: Option<String>,
}

/// What a library is, as its first child process reports it.
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
    seconds: f64,
    /// Why it failed, or what the backend refused.
    details: String,
}

const METHODS_AND_TASKS: &str = "Checked: the library loads, describes itself, and its options are well formed. What a \
                                 method or a task computes is not checked.";

/// Between looks at a child.
const POLL: Duration = Duration::from_millis(10);

/// Errors: a library that cannot be loaded or fails a test.
pub fn check(args: &CheckArgs, explicit: &[PathBuf], plugins: &PluginSet) -> Result<()> {
    match args.child.as_deref() {
        Some("list") => output::json_line(&contents(args, plugins)?),
        Some(name) => run_test(args, name, plugins),
        None => check_all(args, explicit),
    }
}

/// `explicit` is what `--plugin` names.
fn check_all(args: &CheckArgs, explicit: &[PathBuf]) -> Result<()> {
    let output = Output::new(args.json);
    let list = child(args, explicit, "list")?;
    if !list.passed() {
        let why = list.why(args.limit);
        let usage = list.status.is_some_and(|status| status.code() == Some(2));
        return Err(if usage { Error::Usage(why) } else { Error::Plugin(why) });
    }
    let contents: Contents = serde_json::from_str(list.stdout.trim().lines().last().unwrap_or_default())
        .map_err(|e| Error::Plugin(format!("the list of tests cannot be read: {e}")))?;
    for Plugin { kind, name, version } in &contents.plugins {
        output.say(format!("{kind} {name} {version}"))?;
    }
    if contents.plugins.iter().any(|plugin| plugin.kind != PluginKind::Backend) {
        output.say(METHODS_AND_TASKS)?;
    }
    if let Some(device) = &contents.device {
        output.say(format!("{} tests on {device}", contents.tests.len()))?;
    }
    let mut results = vec![];
    for name in &contents.tests {
        let ended = child(args, explicit, name)?;
        ended.stderr.lines().for_each(|line| tracing::info!("{name}: {line}"));
        let details = if ended.passed() { ended.stdout_details() } else { ended.why(args.limit) };
        let (mark, said) = if ended.passed() {
            ("passed", details.lines().next().unwrap_or_default())
        } else {
            // The whole reason now: a later test may hang.
            ("FAILED", details.as_str())
        };
        output.say(format!("{mark}  {:>6.1} s  {name}  {said}", ended.seconds).trim_end())?;
        results.push(TestResult { name: name.clone(), passed: ended.passed(), seconds: ended.seconds, details });
    }
    let (count, failures) = (results.len(), results.iter().filter(|result| !result.passed).count());
    output.result(&Report { contents, results })?;
    match failures {
        0 => output.say(format!("{count} tests passed")),
        n => Err(Error::Plugin(format!("{n} of {count} tests failed"))),
    }
}

// ---- in a child process

/// The library's plugins and the device that is checked.
fn contents(args: &CheckArgs, plugins: &PluginSet) -> Result<Contents> {
    let Some(path) = &args.path else {
        let Some(wanted) = &args.device else {
            return Err(Error::Usage("give a library, or a device of an installed backend with --device".into()));
        };
        let device = devices::find(plugins).select(wanted)?.clone();
        return Ok(Contents { plugins: vec![], device: Some(device.id), tests: selected(args)? });
    };
    let set = load(path)?;
    let found = set.report().iter();
    let loaded: Vec<Plugin> = found
        .filter_map(|found| {
            Some(Plugin { kind: found.kind?, name: found.name.clone(), version: found.version.clone() })
        })
        .collect();
    for method in set.methods() {
        // The defaults have to be good where there is one for each option.
        let info = method.info();
        if info.options.iter().all(|option| option.default.is_some()) {
            options::check(&format!("method {}", info.name), &info.options, &BTreeMap::new())?;
        }
    }
    if set.backends().is_empty() {
        return Ok(Contents { plugins: loaded, device: None, tests: vec![] });
    }
    let device = select(&Devices::find(vec![], &set), args, &set)?.id;
    Ok(Contents { plugins: loaded, device: Some(device), tests: selected(args)? })
}

fn selected(args: &CheckArgs) -> Result<Vec<String>> {
    let names: Vec<String> = tests().into_iter().map(|test| test.name).collect();
    if let Some(text) = args.test.iter().find(|text| !names.iter().any(|name| name.contains(*text))) {
        return Err(Error::Usage(format!("no test has `{text}` in its name; there are: {}", names.join(", "))));
    }
    Ok(names.into_iter().filter(|name| args.test.is_empty() || args.test.iter().any(|t| name.contains(t))).collect())
}

/// The plugins of a library, and nothing else.
fn load(path: &Path) -> Result<PluginSet> {
    let set = PluginSet::discover(&DiscoverOptions { explicit: vec![path.to_owned()], ..DiscoverOptions::default() });
    for found in set.report() {
        if let State::Refused { reason } = &found.state {
            return Err(Error::Plugin(format!("{}: {reason}", found.path.display())));
        }
    }
    Ok(set)
}

/// The device of the library that is meant.
fn select(devices: &Devices, args: &CheckArgs, library: &PluginSet) -> Result<DeviceInfo> {
    let wanted = args.device.as_deref().or(library.backends().first().map(|backend| &*backend.info().name));
    devices.select(wanted.unwrap_or_default()).cloned()
}

/// Runs one test; what failed goes to stderr, what was refused to stdout.
fn run_test(args: &CheckArgs, name: &str, plugins: &PluginSet) -> Result<()> {
    let test = tests().into_iter().find(|test| test.name == name);
    let test = test.ok_or_else(|| Error::Usage(format!("there is no test `{name}`")))?;
    let library = args.path.as_deref().map(load).transpose()?;
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

const REFUSED: &str = "refused: ";

// ---- in the parent

/// A child process that is over.
struct Ended {
    /// `None`: it was ended because its time was up.
    status: Option<ExitStatus>,
    seconds: f64,
    stdout: String,
    stderr: String,
}

/// Runs this program for one part of the check.
fn child(args: &CheckArgs, explicit: &[PathBuf], what: &str) -> Result<Ended> {
    let program = std::env::current_exe().map_err(Error::io("sparta-cli"))?;
    let mut command = Command::new(&program);
    command.args(["plugin", "check", "--child", what]).args(&args.path);
    command.args(explicit.iter().flat_map(|path| ["--plugin".as_ref(), path.as_os_str()]));
    command.args(args.device.iter().flat_map(|device| ["--device", device]));
    command.args(args.test.iter().flat_map(|test| ["--test", test]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(Error::io(&program))?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child, start + Duration::from_secs(args.limit)).map_err(Error::io(&program))?;
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Ended { status, seconds: start.elapsed().as_secs_f64(), stdout: text(stdout), stderr: text(stderr) })
}

/// `None`: the child did not end in time, and was made to.
fn wait(child: &mut Child, end: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            // It may have ended by itself just now.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = vec![];
        // What was read before an error is kept.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Ended {
    fn passed(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// What the backend refused.
    fn stdout_details(&self) -> String {
        self.stdout.lines().filter(|line| line.starts_with(REFUSED)).collect::<Vec<_>>().join("\n")
    }

    /// Why it failed. A process that crashes or hangs has no message; then the last case that it began is named.
    fn why(&self, limit: u64) -> String {
        let last = self.stdout.trim().lines().last().unwrap_or("its start");
        let message = self.stderr.trim().trim_start_matches("error: ");
        match self.status {
            None => format!("did not end within {limit} s; it was at: {last}"),
            Some(status) if matches!(status.code(), Some(1 | 2)) => message.to_owned(),
            Some(status) => format!("{status} at: {last}\n{message}").trim_end().to_owned(),
        }
    }
}
