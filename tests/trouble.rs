//! What helps when something is wrong on a user's machine: logging, and the report on devices. Needs
//! `cargo build --release` first.

use sparta_tests::command::{command, output, ran, refused};
use std::fs;

#[test]
fn verbose_commands_log_to_stderr() {
    let home = tempfile::tempdir().unwrap();
    let quiet = output(home.path(), "devices --json");
    assert!(!String::from_utf8_lossy(&quiet.stderr).contains("INFO"));
    for line in ["-v devices --json", "devices --json --verbose"] {
        let (stdout, stderr) = ran(home.path(), line);
        assert!(stderr.contains("INFO sparta_cli::parse: plugin cpu"), "{stderr}");
        assert!(!stderr.contains("DEBUG"), "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
    }
    let more = ran(home.path(), "plan -vv").1;
    assert!(more.contains("DEBUG sparta_io::weights::file: opened"), "{more}");
}

#[test]
fn the_variable_sets_a_filter() {
    let home = tempfile::tempdir().unwrap();
    let with = |filter: &str| command(home.path(), &["plan", "-v"]).env("SPARTA_LOG", filter).output().unwrap();
    let log = String::from_utf8(with("sparta_io=debug").stderr).unwrap();
    assert!(log.contains("DEBUG sparta_io") && !log.contains("sparta_cli"), "{log}");
    let output = with("sparta=loud");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("SPARTA_LOG: `sparta=loud` is not a filter such as"), "{error}");
}

#[test]
fn a_report_has_versions_plugins_and_what_each_device_does() {
    let home = tempfile::tempdir().unwrap();
    let command = |file: &str| {
        let mut command = command(home.path(), &["devices", "--report", file]);
        command.env("WGPU_TEST", "1").env("HF_TOKEN", "secret").output().unwrap()
    };
    let done = command("report.txt");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report = fs::read_to_string(home.path().join("report.txt")).unwrap();
    for part in [
        concat!("sparta-cli ", env!("CARGO_PKG_VERSION")),
        "WGPU_TEST=1",
        "== plugins",
        "== cpu (",
        "conformance f32: norms",
        "passed: 2",
        "log:",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(!report.contains("secret"), "{report}");
    for device in sparta_wgpu::devices() {
        assert!(report.contains(&format!("opening {} as", device.info.name)), "{report}");
    }
    let again = command("report.txt");
    assert_eq!(again.status.code(), Some(1));
    refused(home.path(), "devices --report other.txt --json", &["--json"]);
}
