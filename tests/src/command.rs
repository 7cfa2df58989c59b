//! The real binary as a child process.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `sparta-cli`, in the directory that cargo puts the test's own executable below.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let release = test.ancestors().nth(2).map(Path::to_owned).unwrap_or_default();
    let path = release.join(format!("sparta-cli{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not there; run `cargo build --release` first", path.display());
    path
}

/// The command with these arguments, with `home` as its home and current directory.
pub fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = in_home(Command::new(binary()), home);
    command.args(args);
    command
}

/// Gives a command this home and current directory.
pub fn in_home(mut command: Command, home: &Path) -> Command {
    command.current_dir(home).env_remove("SPARTA_PLUGIN_PATH");
    for (name, dir) in [("HOME", ""), ("XDG_CACHE_HOME", "cache"), ("XDG_DATA_HOME", "data")] {
        command.env(name, home.join(dir));
    }
    command
}

/// Runs the command with empty input.
pub fn run(home: &Path, args: &[&str]) -> Output {
    command(home, args).stdin(Stdio::null()).output().unwrap()
}

/// As [`run`], with the words of a line as the arguments.
pub fn output(home: &Path, line: &str) -> Output {
    run(home, &line.split_whitespace().collect::<Vec<_>>())
}

/// The standard output of a command that must have succeeded.
#[track_caller]
pub fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON object that a command's output ends with.
#[track_caller]
pub fn last_json(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

/// Checks that a command has failed with a message that has these parts.
#[track_caller]
pub fn failed(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it succeeded: {text}");
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

/// The standard output and error of a command that must succeed.
#[track_caller]
pub fn ran(home: &Path, line: &str) -> (String, String) {
    let output = output(home, line);
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{line}: {err}");
    (out, err)
}

/// Checks that the command fails with a message that has these parts.
#[track_caller]
pub fn refused(home: &Path, line: &str, parts: &[&str]) {
    failed(&output(home, line), parts);
}

pub fn json(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
