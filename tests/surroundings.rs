//! The main job where users are: directories with odd names, terminals that can do little, no home. Needs
//! `cargo build --release` first.

use sparta_tests::command::command;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const RUN: [&str; 12] =
    ["run", "--device", "cpu", "--max-steps", "3", "--max-train", "64", "--max-dev", "8", "--max-test", "8", "--out"];

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A run, and what is done with its result.
#[track_caller]
fn all_of_it(home: &Path, out: &str, change: impl Fn(&mut Command) -> &mut Command) {
    let merged = format!("{out} merged");
    let steps: [&[&str]; 4] = [
        &[&RUN[..], &[out]].concat(),
        &["eval", out, "--device", "cpu"],
        &["adapter", "info", out],
        &["adapter", "merge", out, "--out", &merged, "--device", "cpu"],
    ];
    for arguments in steps {
        succeeds(change(&mut command(home, arguments)));
    }
    assert!(home.join(merged).join("model.safetensors").is_file());
}

#[test]
fn names_with_spaces_quotes_and_other_letters() {
    let home = tempfile::tempdir().unwrap();
    let odd = home.path().join("my \"files\" & größe 模型");
    fs::create_dir(&odd).unwrap();
    all_of_it(&odd, "a run; with 'marks'", |command| command);
}

#[test]
fn terminals_that_can_do_little() {
    let home = tempfile::tempdir().unwrap();
    all_of_it(home.path(), "dumb", |command| command.env("TERM", "dumb").env("NO_COLOR", "1"));
    all_of_it(home.path(), "narrow", |command| command.env("COLUMNS", "20").env("LINES", "5"));
    let help = succeeds(command(home.path(), &["run", "--help"]).env("COLUMNS", "20"));
    assert!(String::from_utf8(help.stdout).unwrap().contains("--method"));
}

/// Containers and services may have neither home nor terminal.
#[test]
fn no_home() {
    let home = tempfile::tempdir().unwrap();
    let bare = |command: &mut Command| {
        for name in ["HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "TERM", "USER"] {
            command.env_remove(name);
        }
    };
    let mut run = command(home.path(), &[&RUN[..], &["run"]].concat());
    bare(&mut run);
    succeeds(&mut run);
    let mut devices = command(home.path(), &["devices", "--json"]);
    bare(&mut devices);
    succeeds(&mut devices);
}
