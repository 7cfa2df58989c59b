//! Exchanges LoRA and sparse adapters with the real PEFT library, in `$SPARTA_PEFT_PYTHON` or `python3` if that has it.

use serde_json::Value;
use sparta_tests::command::command;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const TEXTS: &str = "a wonderful film\nboring and far too long\nI have seen worse\n";

fn python() -> Option<String> {
    let python = std::env::var("SPARTA_PEFT_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_peft = Command::new(&python).args(["-c", "import peft, transformers"]).output();
    if has_peft.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    sparta_tests::skipped(&format!("{python} has no peft; SPARTA_PEFT_PYTHON names an interpreter that has it"));
    None
}

fn embedded(what: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets").join(what)
}

/// The output of a command for these texts on standard input.
fn answer(mut command: Command) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(TEXTS.as_bytes()).unwrap();
    succeeded(child.wait_with_output().unwrap())
}

#[track_caller]
fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// PEFT's class probabilities for each text.
fn theirs(python: &str, what: &str, base: &Path, adapter: &Path) -> Vec<Vec<f64>> {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peft/peft_side.py"));
    command.arg(what).arg(base).arg(adapter);
    answer(command).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ours(home: &Path, base: &Path, adapter: &str) -> Vec<Vec<f64>> {
    let model = base.to_str().unwrap();
    let printed = answer(command(home, &["predict", adapter, "--model", model, "--device", "cpu", "--json"]));
    let probabilities = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).collect()
    };
    printed.lines().map(probabilities).collect()
}

fn run(home: &Path, line: &str) {
    succeeded(command(home, &line.split(' ').collect::<Vec<_>>()).output().unwrap());
}

#[track_caller]
fn close(a: &[Vec<f64>], b: &[Vec<f64>]) {
    assert_eq!((a.len(), b.len()), (3, 3));
    let largest = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(largest < 2e-6, "probabilities differ by {largest}: {a:?} {b:?}");
}

#[test]
fn peft_loads_what_was_trained_here() {
    let Some(python) = python() else { return };
    let (home, base) = (tempfile::tempdir().unwrap(), embedded("model"));
    for method in ["lora", "sparta --density 0.02 --lr 1e-3"] {
        run(home.path(), &format!("run --method {method} --epochs 1 --device cpu --precision f32 --out run"));
        run(home.path(), "adapter export run --format peft --out peft");
        let (expected, adapter) = (ours(home.path(), &base, "run"), home.path().join("peft"));
        close(&theirs(&python, "load", &base, &adapter), &expected);
        close(&theirs(&python, "merged", &base, &adapter), &expected);
        close(&ours(home.path(), &base, "peft"), &expected);
        for made in ["run", "peft"] {
            fs::remove_dir_all(home.path().join(made)).unwrap();
        }
    }
}

/// With f32 weights: with 16 bits, PEFT keeps sums that we round when storing them.
#[test]
fn what_peft_saved_is_used_here() {
    let Some(python) = python() else { return };
    let (home, model) = (tempfile::tempdir().unwrap(), embedded("model"));
    let wide = format!("adapter merge {} --dtype f32 --device cpu --out wide", model.to_str().unwrap());
    run(home.path(), &wide);
    let base = home.path().join("wide");
    for kind in ["lora", "supertuning", "shira"] {
        let expected = theirs(&python, kind, &base, &home.path().join(kind));
        close(&expected, &ours(home.path(), &base, kind));
    }
}
