//! A run that is killed at any moment and resumed ends with the same bytes as one that was left alone; nothing that was
//! saved is lost. Real processes, real SIGKILL. `SPARTA_KILLS=N` kills N times per method instead of a few.

use sparta_tests::command::command;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

const STEPS: &str = "20";

fn options(method: &str) -> Vec<&str> {
    let mut options = vec!["run", "--method", method, "--max-steps", STEPS, "--checkpoint-interval", "3"];
    options.extend(["--eval-interval", "8", "--max-dev", "40", "--max-test", "40", "--patience", "5"]);
    // Small enough that steps are split into micro-batches.
    options.extend(["--micro-batch-tokens", "128"]);
    options
}

fn start(home: &Path, method: &str, device: &str, out: &Path) -> Child {
    let out = out.to_str().unwrap();
    let args = [&options(method)[..], &["--device", device, "--out", out]].concat();
    command(home, &args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn resume(home: &Path, device: &str, out: &Path) -> Child {
    let args = ["run", "--resume", out.to_str().unwrap(), "--device", device];
    command(home, &args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn checkpoint_exists(out: &Path) -> bool {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else { return false };
    entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with("step-"))
}

fn lines(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until the run has a checkpoint and has logged `more` lines, or has ended.
fn wait_for(child: &mut Child, out: &Path, more: usize) -> bool {
    let (begin, first) = (Instant::now(), lines(out));
    while begin.elapsed() < Duration::from_secs(120) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if checkpoint_exists(out) && lines(out) >= first + more {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("nothing happens in {}", out.display());
}

fn assert_equal_results(method: &str, alone: &Path, killed: &Path) {
    for file in ["metrics.jsonl", "adapter/adapter.safetensors", "adapter/adapter.json"] {
        let [a, b] = [alone, killed].map(|dir| fs::read(dir.join(file)).unwrap());
        assert!(a == b, "{method}: {file} of the killed run differs");
    }
}

fn kill_and_resume(method: &str, device: &str, kills: usize) {
    let home = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| home.path().join(name));
    assert!(start(home.path(), method, device, &alone).wait().unwrap().success());

    let mut child = start(home.path(), method, device, &killed);
    for kill in 0..kills {
        // Different moments: right after a step, while a checkpoint is written, during an evaluation.
        if !wait_for(&mut child, &killed, 1 + kill % 3) {
            break;
        }
        std::thread::sleep(Duration::from_micros(700 * (kill as u64 * 37 % 11)));
        child.kill().unwrap();
        child.wait().unwrap();
        child = resume(home.path(), device, &killed);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
    assert_equal_results(method, &alone, &killed);
}

fn kills(few: usize) -> usize {
    std::env::var("SPARTA_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(few)
}

#[test]
fn every_method_resumes_exactly_on_the_cpu() {
    for method in ["sparta", "lora", "full", "head"] {
        kill_and_resume(method, "cpu", kills(4));
    }
}

/// A finished run of ten steps, sent on to twenty, is a run of twenty steps.
#[test]
fn more_steps_may_be_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let run = |steps: &str, out: &PathBuf, resume: bool| -> Output {
        let out = out.to_str().unwrap();
        let args: Vec<&str> = match resume {
            true => vec!["run", "--resume", out, "--max-steps", steps, "--device", "cpu"],
            false => vec!["run", "--max-steps", steps, "--schedule", "constant", "--device", "cpu", "--out", out],
        };
        command(home.path(), &args).stdin(Stdio::null()).output().unwrap()
    };
    let [twenty, ten] = ["twenty", "ten"].map(|name| home.path().join(name));
    assert!(run("20", &twenty, false).status.success());
    assert!(run("10", &ten, false).status.success());
    let output = run("20", &ten, true);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let adapter = "adapter/adapter.safetensors";
    assert!(fs::read(twenty.join(adapter)).unwrap() == fs::read(ten.join(adapter)).unwrap());
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same() {
    let home = tempfile::tempdir().unwrap();
    let [alone, damaged] = ["alone", "damaged"].map(|name| home.path().join(name));
    assert!(start(home.path(), "sparta", "cpu", &alone).wait().unwrap().success());
    assert!(start(home.path(), "sparta", "cpu", &damaged).wait().unwrap().success());
    let newest = damaged.join("checkpoints/step-00000020/state.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&newest, bytes).unwrap();
    let output = resume(home.path(), "cpu", &damaged).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_equal_results("sparta", &alone, &damaged);
}

#[test]
fn what_changed_is_named() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    assert!(start(home.path(), "sparta", "cpu", &out).wait().unwrap().success());
    let config = out.join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"batch_size\": 16", "\"batch_size\": 8")).unwrap();
    let output = resume(home.path(), "cpu", &out).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("batch_size was 16, is 8"), "{text}");
}

#[test]
fn a_second_run_in_the_same_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let mut first = start(home.path(), "full", "cpu", &out);
    assert!(wait_for(&mut first, &out, 1), "the first run ended early");
    let second = resume(home.path(), "cpu", &out).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("another run is writing here"), "{text}");
    assert!(first.wait().unwrap().success(), "the first run is not disturbed");
}

/// A disk that fills up ends the run with a message; the checkpoints before are whole and the run goes on after there is
/// space again. Needs the right to mount a small tmpfs.
#[test]
fn a_full_disk_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let disk = home.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs", disk.to_str().unwrap()])
        .output();
    if !mount.is_ok_and(|m| m.status.success()) {
        sparta_tests::skipped("no right to mount a small tmpfs");
        return;
    }
    let out = disk.join("run");
    let mut child = start(home.path(), "sparta", "cpu", &out);
    assert!(wait_for(&mut child, &out, 1));
    let filler = disk.join("filler");
    fs::write(&filler, vec![1u8; 8 << 20]).unwrap_err();
    let failed = !child.wait().unwrap().success();
    let whole = checkpoint_exists(&out);
    fs::remove_file(&filler).unwrap();
    let output = resume(home.path(), "cpu", &out).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let alone = home.path().join("alone");
    assert!(start(home.path(), "sparta", "cpu", &alone).wait().unwrap().success());
    let equal = fs::read(alone.join("metrics.jsonl")).unwrap() == fs::read(out.join("metrics.jsonl")).unwrap();
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
    assert!(failed, "the disk was not full");
    assert!(whole && output.status.success() && equal, "{text}");
}

#[test]
fn lora_resumes_exactly_on_wgpu() {
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        return;
    }
    kill_and_resume("lora", "wgpu", 1);
}

/// Equal runs give equal bytes, whatever the number of threads.
#[test]
fn threads_do_not_change_the_bits() {
    let home = tempfile::tempdir().unwrap();
    let run = |name: &str, threads: &str| {
        let out = home.path().join(name);
        let args = [&options("sparta")[..], &["--device", "cpu", "--out", out.to_str().unwrap()]].concat();
        let output = command(home.path(), &args).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    };
    let one = run("one", "1");
    assert_equal_results("again", &one, &run("again", "1"));
    assert_equal_results("two threads", &one, &run("two", "2"));
}

/// The losses of ten steps on the CPU and on a graphics driver agree within 1e-3.
#[test]
fn devices_agree() {
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let losses = |device: &str| -> Vec<f64> {
        let out = home.path().join(device);
        let mut args = vec!["run", "--method", "lora", "--max-steps", "10", "--max-dev", "8", "--max-test", "8"];
        args.extend(["--device", device, "--out", out.to_str().unwrap()]);
        let output = command(home.path(), &args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["kind"] == "step").map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let (cpu, wgpu) = (losses("cpu"), losses("wgpu"));
    assert_eq!((cpu.len(), wgpu.len()), (10, 10));
    for (step, (a, b)) in cpu.iter().zip(&wgpu).enumerate() {
        assert!((a - b).abs() < 1e-3, "step {}: {a} on the CPU, {b} on wgpu", step + 1);
    }
}

/// A run that ended before its first checkpoint begins anew.
#[test]
fn without_a_checkpoint_the_run_begins_anew() {
    let home = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| home.path().join(name));
    for out in [&alone, &killed] {
        assert!(start(home.path(), "sparta", "cpu", out).wait().unwrap().success());
    }
    fs::remove_dir_all(killed.join("checkpoints")).unwrap();
    assert!(resume(home.path(), "cpu", &killed).wait().unwrap().success());
    assert_equal_results("sparta", &alone, &killed);
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "mine").unwrap();
    let below = file.join("run");
    for out in [&file, &below, &PathBuf::from("/proc/run")] {
        let args = ["run", "--max-steps", "1", "--device", "cpu", "--out", out.to_str().unwrap()];
        let output = command(home.path(), &args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(out.to_str().unwrap()), "{text}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}
