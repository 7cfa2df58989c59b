//! `sparta-cli bench`, end to end on a small model: results agree with the stored steps on every device present,
//! and reports of several machines make one table. Needs `cargo build --release` first.

use serde_json::Value;
use sparta_tests::command::command;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

/// A shape whose steps are stored.
const SMALL: &str = "64,2,4,2,128,512:2x16";

fn run(home: &Path, args: &[&str]) -> Output {
    command(home, args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn report(home: &Path, device: &str) -> Value {
    let args = ["bench", "--shape", SMALL, "--steps-only", "--seconds", "0.01", "--device", device];
    let output = run(home, &[&args[..], &["--out", device, "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Checks that all measured steps agree with the stored ones and stay below the ceiling; returns their number.
#[track_caller]
fn check_steps(report: &Value) -> usize {
    let steps = report["devices"][0]["steps"].as_array().unwrap();
    for step in steps {
        let figures = &step["measured"];
        assert_eq!(figures["checked"], true, "{step}");
        assert!(figures["tokens_per_s"].as_f64().unwrap() > 0.0, "{step}");
        let share = figures["share_of_ceiling"].as_f64().unwrap();
        assert!(share > 0.0 && share <= 1.0, "{step}");
    }
    steps.len()
}

#[test]
fn every_device_agrees_with_the_stored_steps_and_reports_compare() {
    let home = tempfile::tempdir().unwrap();
    // Five methods in two precisions.
    assert_eq!(check_steps(&report(home.path(), "cpu")), 10);
    let page = fs::read_to_string(home.path().join("cpu/bench.html")).unwrap();
    assert!(page.contains("tokens per second") && page.contains("sparta-0.05"), "{page}");
    let mut reports = vec!["cpu/bench.json"];
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
    } else {
        assert_eq!(check_steps(&report(home.path(), "wgpu")), 10);
        reports.push("wgpu/bench.json");
    }
    let args = [&["bench", "compare"], &reports[..], &["--out", "table.html", "--json"]].concat();
    let output = run(home.path(), &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(comparison["devices"].as_array().unwrap().len(), reports.len());
    let rows = comparison["steps"].as_array().unwrap();
    assert_eq!(rows.len(), 10);
    assert!(rows.iter().all(|row| row["steps"].as_array().unwrap().len() == reports.len()));
    assert!(fs::read_to_string(home.path().join("table.html")).unwrap().contains("tokens per second"));
}

#[test]
fn single_ops_are_measured_and_none_is_above_the_ceiling() {
    let home = tempfile::tempdir().unwrap();
    let args = ["bench", "--quick", "--shape", SMALL, "--method", "lora", "--seconds", "0.01", "--device", "cpu"];
    let output = run(home.path(), &[&args[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kernels = report["devices"][0]["kernels"].as_array().unwrap();
    assert!(kernels.len() >= 10, "{report}");
    for kernel in kernels {
        let share = kernel["share_of_ceiling"].as_f64().unwrap();
        assert!(share > 0.0 && share <= 1.0, "{kernel}");
    }
}

#[test]
fn what_does_not_run_is_left_out_with_its_reason_and_wrong_arguments_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let args = ["bench", "--shape", SMALL, "--steps-only", "--method", "full", "--precision", "f32", "--device", "cpu"];
    let output = run(home.path(), &[&args[..], &["--longest", "1e-12", "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let why = report["devices"][0]["steps"][0]["not_measured"].as_str().unwrap();
    assert!(why.contains("left out"), "{why}");
    fs::write(home.path().join("file"), "").unwrap();
    for (args, part) in [
        (&["--shape", "16M"][..], "gemma-2b"),
        (&["--shape", "1,2,3,4,5,6"], "batch"),
        (&["--method", "sparta"], "sparta-0.005"),
        (&["--precision", "f16"], "bf16"),
        (&["--precision", "tf32", "--device", "cpu"], "expected f32 or bf16, got `tf32`"),
        (&["--out", "file", "--device", "cpu"], "--out file: expected a directory, got a file"),
        (&["--device", "nothing"], "nothing"),
        (&["compare", "none.json"], "none.json"),
    ] {
        let output = run(home.path(), &[&["bench"], args].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(part), "{args:?}: {error}");
    }
}

/// A card that does not open, on stand-ins for NVIDIA's libraries.
#[test]
#[cfg(target_os = "linux")]
fn a_device_that_fails_is_left_out_and_an_error_where_it_is_the_only_one() {
    let home = tempfile::tempdir().unwrap();
    let driver = home.path().join("libcuda.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/libraries.c");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-DFAIL=\"cuCtxCreate_v2\"", "-DCODE=3", "-o"]).arg(&driver);
    let Ok(done) = compiler.arg(source).arg("-lm").output() else {
        return sparta_tests::skipped_unless_in_ci("no C compiler `cc`");
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for name in ["libnvrtc.so.13", "libcublasLt.so.13"] {
        fs::hard_link(&driver, home.path().join(name)).unwrap();
    }
    let bench = |more: &[&str]| {
        let args = ["bench", "--shape", SMALL, "--steps-only", "--method", "lora", "--seconds", "0.01", "--json"];
        let mut command = command(home.path(), &[&args[..], more].concat());
        command.env("SPARTA_CUDA_PATH", home.path()).stdin(Stdio::null()).output().unwrap()
    };
    let failure = "cuda:0: cuCtxCreate: CUDA_ERROR_OTHER (something else)";
    let output = bench(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("warning: Stand-in A (cuda:0) is left out: {failure}")), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids = report["devices"].as_array().unwrap().iter().map(|device| &device["device"]["id"]);
    assert!(ids.clone().any(|id| id == "cpu") && !ids.clone().any(|id| id == "cuda:0"), "{report}");
    let output = bench(&["--device", "cuda:0"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.ends_with(&format!("error: {failure}\n")), "{said}");
}

/// The reports in `docs/results`, with their comparison in its README. `SPARTA_WRITE_RESULTS=1` writes the comparison.
#[test]
fn results_of_devices_are_readable_and_compared() {
    const MARK: &str = "<!-- comparison -->\n";
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results");
    let files = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut reports: Vec<String> = files.filter(|name| name.ends_with(".json")).collect();
    reports.sort();
    assert!(!reports.is_empty(), "{} has no report", directory.display());
    let paths: Vec<String> = reports.iter().map(|name| directory.join(name).to_str().unwrap().to_owned()).collect();
    let args: Vec<&str> = ["bench", "compare"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let output = run(tempfile::tempdir().unwrap().path(), &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let comparison = String::from_utf8(output.stdout).unwrap();
    let page = directory.join("README.md");
    let text = fs::read_to_string(&page).unwrap();
    let (before, stored) = text.split_once(MARK).unwrap();
    if std::env::var_os("SPARTA_WRITE_RESULTS").is_some() {
        fs::write(&page, format!("{before}{MARK}{comparison}")).unwrap();
    } else {
        assert_eq!(stored, comparison, "write the comparison again with SPARTA_WRITE_RESULTS=1");
    }
}
