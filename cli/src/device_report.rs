//! `sparta-cli devices --report FILE`: everything needed to find out why a device does not work.

use crate::logging;
use crate::output::{self, Output, bytes};
use sparta_core::plugin::PluginSet;
use sparta_core::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Prefixes of environment variables that change how drivers and this program behave; none holds a secret.
const VARIABLES: &[&str] = &[
    "CUDA_",
    "DRI_PRIME",
    "LD_LIBRARY_PATH",
    "LIBGL_",
    "MESA_",
    "NVIDIA_",
    "RADV_",
    "SPARTA_",
    "VK_",
    "WGPU_",
    "XDG_RUNTIME_DIR",
];
/// The conformance tests run on each device.
const TESTS: &str = "norms";
/// Time limit of each, in seconds.
const LIMIT: &str = "120";

/// Writes the report piece by piece, so that everything before a crash is kept.
///
/// Errors: the file exists, or cannot be written.
pub fn write(plugins: &PluginSet, path: &Path) -> Result<()> {
    let mut file = File::create_new(path).map_err(Error::io(path))?;
    let mut section = |title: &str, text: &str| {
        let written = writeln!(file, "== {title}\n\n{}\n", text.trim_end()).and_then(|()| file.sync_data());
        written.map_err(Error::io(path))
    };
    section("program and machine", &machine())?;
    section("environment", &environment())?;
    section("plugins", &pretty(plugins.report())?)?;
    section("devices", &child(&["devices"], "sparta=debug,warn")?)?;
    for device in crate::devices::find(plugins).list() {
        Output::new(false).say(format_args!("opening and testing {} ({})", device.id, device.name))?;
        let arguments = ["plugin", "check", "--device", &device.id, "--test", TESTS, "--limit", LIMIT];
        section(&format!("{} ({})", device.id, device.name), &child(&arguments, "sparta=debug,info")?)?;
    }
    output::print(format_args!(
        "written to {}; it names paths, drivers and devices of this machine: look through it before you send it",
        path.display()
    ))
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(['=', ':'])).map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let system = field(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(|| std::env::consts::OS.into());
    let kernel = read("/proc/sys/kernel/osrelease");
    let processor = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let threads = std::thread::available_parallelism().map_or("?".into(), |n| n.to_string());
    let memory = sparta_plugin::host_memory().map_or("?".into(), bytes);
    format!(
        "sparta-cli {}\nsystem     {system} {}\nprocessor  {processor}, {threads} threads\nmemory     {memory} free",
        env!("CARGO_PKG_VERSION"),
        kernel.trim()
    )
}

fn environment() -> String {
    let known = |name: &str| VARIABLES.iter().any(|beginning| name.starts_with(beginning));
    let variables = std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    let mut lines: Vec<String> =
        variables.filter(|(name, _)| known(name)).map(|(name, value)| format!("{name}={}", value.display())).collect();
    lines.sort();
    lines.join("\n")
}

fn pretty(value: &(impl serde::Serialize + ?Sized)) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::Usage(format!("the plugins cannot be written: {error}")))
}

/// The output and log of a child process, which a driver may crash.
fn child(arguments: &[&str], filter: &str) -> Result<String> {
    let program = std::env::current_exe().map_err(Error::io("sparta-cli"))?;
    let mut command = Command::new(&program);
    command.args(arguments).env(logging::VARIABLE, filter).stdin(Stdio::null());
    let output = command.output().map_err(Error::io(&program))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (out, log) = (text(&output.stdout), text(&output.stderr));
    Ok(format!("$ sparta-cli {}\n{out}\n{}\n\nlog:\n{log}", arguments.join(" "), output.status))
}
