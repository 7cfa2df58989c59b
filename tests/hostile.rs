//! Plugins that hang, exit, mislead or overreach, loaded by the real binary: an error or a message that names them,
//! never a crash, an exit code of 0 or a result in the wrong place. `hostile/method.c` needs a C compiler.
#![cfg(unix)]

use serde_json::Value;
use sparta_tests::command::command;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The library of a case; `None` if there is no C compiler.
fn compile(case: u32, directory: &Path) -> Option<PathBuf> {
    let library = directory.join(format!("case{case}{}", std::env::consts::DLL_SUFFIX));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function"])
        .arg(format!("-DCASE={case}"))
        .arg("-I")
        .arg(root.join("../plugins/sdk/include"))
        .arg("-o")
        .arg(&library)
        .arg(root.join("hostile/method.c"))
        .output();
    let Ok(output) = compiler else {
        sparta_tests::skipped("no C compiler `cc`");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

/// A command with the library of a case.
fn with(case: u32, args: &[&str]) -> Option<(Output, tempfile::TempDir)> {
    let home = tempfile::tempdir().unwrap();
    let library = compile(case, home.path())?;
    let plugin = ["--plugin", library.to_str().unwrap()];
    let output = command(home.path(), &[&plugin, args].concat()).stdin(Stdio::null()).output().unwrap();
    Some((output, home))
}

const RUN: [&str; 16] = [
    "run",
    "--method",
    "hostile",
    "--device",
    "cpu",
    "--max-steps",
    "2",
    "--max-dev",
    "8",
    "--max-test",
    "8",
    "--json",
    "--precision",
    "f32",
    "--out",
    "out",
];
/// A command with a built-in method.
const OTHER: [&str; 6] = ["plan", "--method", "head", "--device", "cpu", "--json"];

fn texts(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn refused(case: u32, args: &[&str], parts: &[&str]) {
    let Some((output, _home)) = with(case, args) else { return };
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    parts.iter().for_each(|part| assert!(stderr.contains(part), "{part}: {stderr}"));
    // By its file or its method.
    assert!(stderr.contains(&format!("case{case}")) || stderr.contains("`hostile`"), "{stderr}");
}

#[test]
fn a_good_one_runs_and_is_in_the_plan() {
    let Some((output, home)) = with(0, &RUN) else { return };
    let (stdout, stderr) = texts(&output);
    let result: Value = serde_json::from_str(stdout.trim()).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
    assert_eq!(result["stopped"], "completed");
    assert!(stderr.contains("the method plugin hostile 1 is ") && stderr.contains("(--plugin)"), "{stderr}");
    assert!(home.path().join("out/result.json").is_file());
}

#[test]
fn one_that_ends_the_process_is_named() {
    for (case, what) in [(1, "loading it"), (2, "describe"), (3, "select")] {
        refused(case, &RUN, &["the process was ended during a call of plugin", what]);
    }
}

#[test]
fn a_slow_one_is_named() {
    let Some((output, _home)) = with(4, &OTHER) else { return };
    let (_, stderr) = texts(&output);
    assert!(output.status.success() && stderr.contains("waiting for plugin"), "{stderr}");
}

#[test]
fn a_plugin_may_print_and_change_the_directory() {
    for case in [5, 6] {
        let Some((output, home)) = with(case, &RUN) else { return };
        let (stdout, stderr) = texts(&output);
        let result: Value = serde_json::from_str(stdout.trim()).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
        assert_eq!(result["stopped"], "completed");
        assert!(home.path().join("out/result.json").is_file(), "{stderr}");
    }
}

#[test]
fn what_cannot_be_loaded_is_fatal_even_for_other_methods() {
    refused(8, &OTHER, &["is not a valid name"]);
    refused(9, &OTHER, &["option `help`"]);
    refused(10, &OTHER, &["no value is in the range of its option `n`"]);
    refused(11, &OTHER, &["a_function_that_is_nowhere"]);
    refused(16, &OTHER, &["its summary has 7999 bytes"]);
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path(), &[&["--plugin", "nowhere.so"][..], &OTHER].concat()).output().unwrap();
    assert!(texts(&output).1.contains("nowhere.so: there is no such file"), "{}", texts(&output).1);
    assert_eq!(output.status.code(), Some(1));
    // Listing still works.
    let Some((output, _home)) = with(11, &["plugins"]) else { return };
    assert!(output.status.success() && texts(&output).0.contains("a_function_that_is_nowhere"));
}

#[test]
fn its_answers_are_checked() {
    refused(7, &RUN, &["a pointer is null"]);
    refused(12, &RUN, &["its answer has 314572800 bytes"]);
    refused(13, &RUN, &["the output has the type bf16, expected f32"]);
    refused(14, &RUN, &["the moon is not full"]);
    refused(46, &RUN, &["`select` gave no answer"]);
}

/// The library is named once.
#[test]
fn one_without_a_description_is_refused() {
    let Some((output, _home)) = with(47, &OTHER) else { return };
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("case47") && stderr.contains(": it has no function `describe`"), "{stderr}");
    assert_eq!(stderr.matches("case47").count(), 1, "{stderr}");
}

/// `plugin install` loads a library in another process first, so a crash is an error that leaves no file behind.
#[test]
fn one_that_crashes_is_not_installed() {
    let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(library) = compile(45, elsewhere.path()) else { return };
    let output = command(home.path(), &["plugin", "install", library.to_str().unwrap()]).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    let parts = ["case45", "SIGSEGV", "loading the library"];
    assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn its_changes_between_steps_are_checked() {
    let Some((output, home)) = with(17, &RUN) else { return };
    assert!(output.status.success(), "{}", texts(&output).1);
    assert!(home.path().join("out/adapter/adapter.safetensors").is_file());
    let cases: [(u32, &[&str]); 16] = [
        (18, &["after step 1", "it has no tensor `moon`", "q_proj.weight"]),
        (19, &["q_proj.weight`: expected ", " values, got "]),
        (20, &["expected finite values, got NaN at 2"]),
        (21, &["expected ascending indices, got "]),
        (22, &["expected indices below ", "got 4294967295"]),
        (23, &[" indices, as many as before, got "]),
        (24, &["set `gradients` in `steps`"]),
        (25, &["set `whole_gradients` in `steps`"]),
        (26, &["there is no `hindsight` to read", "m, v"]),
        (27, &["its state has 68157440 bytes"]),
        (28, &["after every 0 steps"]),
        (29, &[" values, got "]),
        (30, &["it wants to act between steps but has no `on_step`"]),
        (31, &["`weight` cannot be changed"]),
        (32, &["are not a whole number of 4-byte elements"]),
        (33, &["the answer of `on_step` cannot be read"]),
    ];
    for (case, parts) in cases {
        refused(case, &RUN, parts);
    }
}

#[test]
fn a_failure_in_any_function_is_an_error_that_names_it() {
    let cases: [(u32, &[&str]); 4] = [
        (34, &["no moon in penalty", "penalty of model.layers.0.self_attn.q_proj.weight"]),
        (35, &["no moon in update", "update of model.layers.0.self_attn.q_proj.weight"]),
        (36, &["no moon in steps"]),
        (37, &["no moon in on_step", "after step 1"]),
    ];
    for (case, parts) in cases {
        refused(case, &RUN, parts);
    }
}

#[test]
fn an_operation_of_its_own_runs_by_its_function() {
    let Some((output, home)) = with(38, &RUN) else { return };
    let (stdout, stderr) = texts(&output);
    let result: Value = serde_json::from_str(stdout.trim()).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
    assert_eq!(result["stopped"], "completed");
    assert!(stderr.contains("the function of the plugin was called"), "{stderr}");
    assert!(home.path().join("out/adapter/adapter.safetensors").is_file());
}

#[test]
fn own_operations_are_checked() {
    let cases: [(u32, &[&str]); 6] = [
        (39, &["the WGSL kernel of `twice`, line 2"]),
        (40, &["the WGSL kernel of `twice`: it writes to its input `x`"]),
        (
            41,
            &["`twice` of model.layers.0.self_attn.q_proj.weight", "its function for the CPU computes a different `y`"],
        ),
        (42, &["the plugin's function for `twice` failed"]),
        (43, &["own: `twice`: operation 0, scale: there is no value 8, only 1 so far"]),
        (44, &["a function can only be given for one of the plugin's own operations, not for `scale`"]),
    ];
    for (case, parts) in cases {
        refused(case, &RUN, parts);
    }
}

#[test]
fn one_that_cannot_be_merged_runs_and_is_described() {
    let Some((output, home)) = with(15, &RUN) else { return };
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stdout}{stderr}");
    let library = home.path().join(format!("case15{}", std::env::consts::DLL_SUFFIX));
    let again = |args: &[&str]| {
        let plugin = ["--plugin", library.to_str().unwrap()];
        command(home.path(), &[&plugin, args].concat()).output().unwrap()
    };
    let info = again(&["adapter", "info", "out"]);
    assert!(info.status.success(), "{}", texts(&info).1);
    let merged = again(&["adapter", "merge", "out", "--out", "merged"]);
    assert!(!merged.status.success() && texts(&merged).1.contains("cannot be merged"), "{}", texts(&merged).1);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_not_a_library() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe.so");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let output = command(home.path(), &[&["--plugin", pipe.to_str().unwrap()][..], &OTHER].concat()).output().unwrap();
    assert!(texts(&output).1.contains("a directory or a device"), "{}", texts(&output).1);
}
