//! `sparta-cli plugin check` on the CPU backend's shared library, as a third party would run it, and on libraries that
//! fail. Needs `cargo build --release` first.

use serde_json::Value as Json;
use sparta_suites::list::tests;
use sparta_tests::command::{binary, command};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

fn library(name: &str) -> PathBuf {
    let file = format!("{DLL_PREFIX}sparta_{name}{DLL_SUFFIX}");
    let path = binary().with_file_name(file);
    assert!(path.exists(), "{} is not there; run `cargo build --release` first", path.display());
    path
}

/// The exit code, the JSON result and stderr of a check.
fn check(library: &Path, more: &[&str]) -> (Option<i32>, Json, String) {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path(), &["plugin", "check", "--json"]);
    let output = command.arg(library).args(more).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    (output.status.code(), result, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Conformance and golden suites through the ABI.
#[test]
fn the_cpu_backend_passes() {
    let (code, result, text) = check(&library("backend_cpu"), &[]);
    assert_eq!(code, Some(0), "{text}");
    let results = result["results"].as_array().unwrap();
    assert_eq!(results.len(), tests().len());
    for result in results {
        let in_tf32 = result["name"].as_str().is_some_and(|name| name.starts_with("conformance tf32"));
        let said = if in_tf32 { "refused: cpu: products in TF32 are not offered" } else { "" };
        assert_eq!((&result["passed"], &result["details"]), (&Json::Bool(true), &Json::from(said)), "{result}");
    }
    assert_eq!((&result["plugins"][0]["kind"], &result["device"]), (&Json::from("backend"), &Json::from("cpu")));
}

#[test]
fn some_tests_can_be_chosen() {
    let (code, result, text) = check(&library("backend_cpu"), &["--test", "contract", "--test", "classifier qwen2"]);
    assert_eq!(code, Some(0), "{text}");
    // The contract, and the classifier in f32 and in bf16.
    assert_eq!(result["results"].as_array().unwrap().len(), 3);
    let (code, _, text) = check(&library("backend_cpu"), &["--test", "of courage"]);
    assert!(code == Some(2) && text.contains("no test has `of courage` in its name"), "{text}");
}

/// All tests of the built-in method that reparametrizes.
#[test]
fn lora_passes() {
    let (code, result, text) = check(&library("method_lora"), &[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(result["plugins"][0]["name"], "lora");
    let results = result["results"].as_array().unwrap();
    let skipped =
        results.iter().filter(|result| result["skipped"] == true).map(|result| result["name"].as_str().unwrap());
    assert_eq!(skipped.collect::<Vec<_>>(), ["method lora: own operations", "method lora: between steps"]);
    assert_eq!(results.len(), 13);
}

/// Backends that compute nothing, crash or hang fail test by test; the command itself survives.
#[test]
fn bad_backends_fail() {
    let dir = tempfile::tempdir().unwrap();
    let compile = |case: u32| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let library = dir.path().join(format!("case{case}{DLL_SUFFIX}"));
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(format!("-DCASE={case}"))
            .arg("-I")
            .arg(root.join("plugins/sdk/include"))
            .arg(root.join("core/tests/plugins/backend.c"))
            .output();
        compiler.is_ok_and(|output| output.status.success()).then_some(library)
    };
    let failure = |case: u32| {
        let library = compile(case)?;
        let (code, result, text) = check(&library, &["--test", "conformance f32: elementwise", "--limit", "10"]);
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(result["results"][0]["passed"], false);
        Some(result["results"][0]["details"].as_str().unwrap().to_owned())
    };
    let Some(computes_nothing) = failure(1) else { return sparta_tests::skipped("no C compiler `cc`") };
    assert!(computes_nothing.contains("failures"), "{computes_nothing}");
    let dies = failure(9).unwrap();
    assert!(dies.contains("signal") && dies.contains(" at: "), "{dies}");
    let hangs = failure(8).unwrap();
    assert!(hangs.contains("did not end within 10 s"), "{hangs}");
}

#[test]
fn what_is_no_plugin_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("text{DLL_SUFFIX}"));
    std::fs::write(&path, "no library").unwrap();
    let (code, _, text) = check(&path, &[]);
    assert!(code == Some(1) && text.contains("not a readable shared library"), "{text}");
}
