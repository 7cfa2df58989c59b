//! A run that is killed at any moment and resumed ends with the same bytes as an undisturbed one, and nothing saved is
//! lost. Real processes, real SIGKILL. `SPARTA_KILLS=N` makes `random_kills` kill N times instead of a few.

use sparta_suites::Random;
use sparta_tests::chat;
use sparta_tests::command::{command, ran, refused};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// 20 steps that are split into micro-batches, with evaluations and checkpoints at different steps.
const TWENTY: &str = "--max-steps 20 --checkpoint-interval 3 --eval-interval 8 --max-dev 40 --max-test 40 --patience 5 \
                      --micro-batch-tokens 128";

/// Fewer and smaller steps, for slow devices.
const SMALL: &str = "--max-steps 6 --batch-size 4 --checkpoint-interval 2 --eval-interval 3 --max-train 200 --max-dev 8 \
                     --max-test 8 --patience 5 --micro-batch-tokens 48 --max-length 24";

/// Methods with options that make steps depend on more state: decay, dropout, another schedule.
const METHODS: [&str; 13] = [
    "sparta",
    "sparta --weight-decay 0.1 --dropout 0.1 --schedule cosine",
    "lora",
    "lora --dropout 0.1",
    "full",
    "head",
    "lora --optimizer adamw-bf16 --dropout 0.1",
    "sparta --optimizer sgd --weight-decay 0.1 --group score.weight:lr=2,decay=0",
    "head --dropout 0.1 --weight-decay 0.1",
    // Rounded copies of trained weights and of extra tensors.
    "full --precision bf16",
    "lora --precision bf16 --dropout 0.1",
    // Weights in blocks.
    "sparta --quantize q4_k --dropout 0.1",
    "lora --quantize q8_0 --precision bf16",
];

fn start(home: &Path, options: &str, method: &str, device: &str, out: &Path) -> Child {
    let line = format!("run --method {method} {options} --device {device}");
    let mut args: Vec<&str> = line.split_whitespace().collect();
    args.extend(["--out", out.to_str().unwrap()]);
    command(home, &args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn succeed(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn resume(home: &Path, device: &str, out: &Path) -> Child {
    let args = ["run", "--resume", out.to_str().unwrap(), "--device", device];
    command(home, &args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Names in the run's `checkpoints`: finished ones, and those being written.
fn checkpoints(out: &Path) -> (Vec<String>, Vec<String>) {
    let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.partition(|name| name.starts_with("step-"))
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
        if !checkpoints(out).0.is_empty() && lines(out) >= first + more {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("nothing happens in {}", out.display());
}

#[track_caller]
fn assert_equal_results(method: &str, alone: &Path, killed: &Path) {
    for file in ["metrics.jsonl", "adapter/adapter.safetensors", "adapter/adapter.json"] {
        let [a, b] = [alone, killed].map(|dir| fs::read(dir.join(file)).unwrap());
        assert!(a == b, "{method}: {file} of the killed run differs");
    }
    let left = checkpoints(killed).1;
    assert!(left.is_empty(), "{method}: {left:?} is left behind");
}

fn kill_and_resume(options: &str, method: &str, device: &str, kills: usize) {
    let home = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| home.path().join(name));
    succeed(start(home.path(), options, method, device, &alone));

    let mut child = start(home.path(), options, method, device, &killed);
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
    succeed(child);
    assert_equal_results(method, &alone, &killed);
}

#[test]
fn every_method_resumes_exactly_on_the_cpu() {
    for method in METHODS {
        kill_and_resume(TWENTY, method, "cpu", 3);
    }
}

/// Prompts and answers from one file, of which a share is dev.
#[test]
fn prompts_and_answers_resume_exactly() {
    let place = tempfile::tempdir().unwrap();
    let [model, data] = ["model", "chats.jsonl"].map(|name| place.path().join(name));
    chat::model(&model, Some(chat::WORDS));
    chat::rows(&data, &chat::questions(40));
    let options = format!("--task sft --model {} --data {} --epochs 4 --batch-size 8", model.display(), data.display());
    for method in ["sparta --density 0.2 --dropout 0.1", "lora", "full"] {
        let control = "--checkpoint-interval 3 --eval-interval 8 --patience 5 --micro-batch-tokens 128";
        kill_and_resume(&format!("{options} {control}"), method, "cpu", 2);
    }
}

#[test]
fn every_method_resumes_exactly_on_wgpu() {
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        return;
    }
    for method in ["sparta --dropout 0.1 --weight-decay 0.1", "lora", "full", "head"] {
        kill_and_resume(SMALL, method, "wgpu", 1);
    }
}

/// A checkpoint at each step, and kills at random moments of the run, including its start. Prints how many
/// kills there were, and how many hit a checkpoint being written.
#[test]
fn random_kills() {
    let wanted: usize = std::env::var("SPARTA_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let mut random = Random::named("random kills");
    let (mut kills, mut while_writing, mut runs) = (0, 0, 0);
    while kills < wanted {
        let method = METHODS[runs % METHODS.len()];
        let options = TWENTY.replace("--checkpoint-interval 3", "--checkpoint-interval 1");
        let home = tempfile::tempdir().unwrap();
        let [alone, killed] = ["alone", "killed"].map(|name| home.path().join(name));
        let begin = Instant::now();
        succeed(start(home.path(), &options, method, "cpu", &alone));
        let duration = begin.elapsed();
        let mut child = start(home.path(), &options, method, "cpu", &killed);
        while !wait_for(&mut child, &killed, 0) && child.try_wait().unwrap().is_none() {}
        let mut seen = None;
        for _ in 0..(wanted - kills).min(20) {
            std::thread::sleep(duration.mul_f64(0.5 * random.uniform()));
            if child.try_wait().unwrap().is_some() {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            // The next process removes one that an earlier kill left behind, if it gets that far.
            let unfinished = checkpoints(&killed).1.into_iter().map(|name| killed.join("checkpoints").join(name));
            let unfinished = unfinished.map(|path| fs::metadata(path).unwrap().modified().unwrap()).max();
            while_writing += usize::from(unfinished.is_some() && unfinished != seen);
            seen = unfinished.or(seen);
            assert!(!checkpoints(&killed).0.is_empty(), "{method}: no checkpoint is left");
            child = resume(home.path(), "cpu", &killed);
        }
        succeed(child);
        assert_equal_results(method, &alone, &killed);
        runs += 1;
    }
    println!(
        "{kills} kills in {runs} runs, {while_writing} while a checkpoint was written: all resumed to the same bytes"
    );
}

/// A kill during the long evaluation at step 8, so that the log ends in half a line.
#[test]
fn killed_in_an_evaluation_and_in_a_line() {
    let home = tempfile::tempdir().unwrap();
    let options = TWENTY.replace("--max-dev 40", "--max-dev 400");
    let alone = home.path().join("alone");
    succeed(start(home.path(), &options, "sparta", "cpu", &alone));
    // On a busy machine the kill may come too late.
    for attempt in 0..20 {
        let killed = home.path().join(format!("killed-{attempt}"));
        let mut child = start(home.path(), &options, "sparta", "cpu", &killed);
        while lines(&killed) < 8 {
            assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if lines(&killed) > 8 {
            continue;
        }
        let log = killed.join("metrics.jsonl");
        let torn = format!("{}{}", fs::read_to_string(&log).unwrap(), r#"{"kind":"eval","st"#);
        fs::write(&log, torn).unwrap();
        succeed(resume(home.path(), "cpu", &killed));
        assert_equal_results("sparta", &alone, &killed);
        return;
    }
    panic!("no kill hit the evaluation");
}

/// With little patience and a metric that soon stops improving, the run ends early, at the same step with the same
/// state.
#[test]
fn early_stopping_survives_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| home.path().join(name));
    let options =
        "--max-steps 60 --checkpoint-interval 1 --eval-interval 4 --max-dev 8 --max-test 8 --patience 2 --lr 1e-6";
    succeed(start(home.path(), options, "sparta", "cpu", &alone));
    let result = fs::read_to_string(alone.join("result.json")).unwrap();
    assert!(result.contains("\"early_stopping\""), "{result}");
    let mut child = start(home.path(), options, "sparta", "cpu", &killed);
    // The first evaluation without improvement is counted, the second is not yet made.
    assert!(wait_for(&mut child, &killed, 11), "the run ended early");
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(resume(home.path(), "cpu", &killed));
    assert_equal_results("sparta", &alone, &killed);
}

/// A finished run of ten steps, extended to twenty, equals a run of twenty steps; the same for epochs.
#[test]
fn a_run_may_become_longer() {
    let home = tempfile::tempdir().unwrap();
    let adapter = |run: &str| fs::read(home.path().join(run).join("adapter/adapter.safetensors")).unwrap();
    // Without evaluations the last state is kept, not the best.
    let options =
        "--schedule constant --warmup 0 --max-train 80 --max-dev 8 --max-test 8 --eval-interval 100 --device cpu";
    for (name, short, long) in [("steps", "--max-steps 6", "--max-steps 12"), ("epochs", "--epochs 1", "--epochs 3")] {
        ran(home.path(), &format!("run {options} {long} --out {name}-long"));
        ran(home.path(), &format!("run {options} {short} --out {name}"));
        assert!(adapter(name) != adapter(&format!("{name}-long")));
        ran(home.path(), &format!("run --resume {name} {long} --device cpu"));
        assert!(adapter(name) == adapter(&format!("{name}-long")), "{name}");
        // Resuming without an extension does nothing.
        ran(home.path(), &format!("run --resume {name} --device cpu"));
        assert!(adapter(name) == adapter(&format!("{name}-long")), "{name}");
    }
}

/// The learning rate of a step follows from the run's length at that step.
#[test]
fn the_schedule_of_a_longer_run_is_that_of_its_new_length() {
    let home = tempfile::tempdir().unwrap();
    let options = "--schedule linear --warmup 0.25 --max-train 64 --max-dev 8 --max-test 8 --device cpu --lr 0.001";
    ran(home.path(), &format!("run {options} --epochs 1 --out run"));
    ran(home.path(), "run --resume run --epochs 2 --device cpu");
    let text = fs::read_to_string(home.path().join("run/metrics.jsonl")).unwrap();
    let rates: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["kind"] == "step")
        .map(|line| line["lr"].as_f64().unwrap())
        .collect();
    // 4 steps, of which 1 warms up; then steps 5 to 8 of 8, of which 2 do.
    let expected = [1.0, 3.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0, 4.0 / 6.0, 3.0 / 6.0, 2.0 / 6.0, 1.0 / 6.0];
    assert_eq!(rates.len(), expected.len());
    for (step, (rate, expected)) in rates.iter().zip(expected).enumerate() {
        assert!((rate - 0.001 * expected).abs() < 1e-12, "step {}: {rate}, not {expected}", step + 1);
    }
}

#[test]
fn a_run_may_not_become_shorter() {
    let home = tempfile::tempdir().unwrap();
    let options = "--max-train 64 --max-dev 8 --max-test 8 --device cpu";
    ran(home.path(), &format!("run {options} --epochs 2 --max-steps 6 --out run"));
    let files = || {
        ["config.json", "plan.json", "metrics.jsonl"].map(|name| fs::read(home.path().join("run").join(name)).unwrap())
    };
    let before = files();
    refused(
        home.path(),
        "run --resume run --max-steps 5 --device cpu",
        &["has 6 steps", "shorten it to 5", "only be extended"],
    );
    refused(home.path(), "run --resume run --epochs 1 --device cpu", &["has 6 steps", "shorten it to 4"]);
    // 2 epochs have 8 steps, of which 6 are done.
    refused(
        home.path(),
        "run --resume run --epochs 3 --device cpu",
        &["not become longer", "--max-steps is 6", "raise both"],
    );
    refused(home.path(), "run --resume run --lr 1 --device cpu", &["leave out --lr"]);
    assert!(before == files(), "what is refused changes nothing");
    ran(home.path(), "run --resume run --max-steps 8 --device cpu");
    refused(home.path(), "run --resume run --max-steps 9 --device cpu", &["--epochs is 2, of 4 steps each"]);
    ran(home.path(), "run --resume run --device cpu");
}

#[test]
fn a_damaged_checkpoint_is_skipped_and_the_result_is_the_same() {
    let home = tempfile::tempdir().unwrap();
    let [alone, damaged] = ["alone", "damaged"].map(|name| home.path().join(name));
    assert!(start(home.path(), TWENTY, "sparta", "cpu", &alone).wait().unwrap().success());
    assert!(start(home.path(), TWENTY, "sparta", "cpu", &damaged).wait().unwrap().success());
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

/// What a power failure can leave: a truncated log or zeros in it. Also a file with the name of a checkpoint.
#[test]
fn with_a_damaged_log_an_older_checkpoint_is_used() {
    let home = tempfile::tempdir().unwrap();
    let [alone, damaged] = ["alone", "damaged"].map(|name| home.path().join(name));
    let options = "--max-steps 6 --checkpoint-interval 2 --max-dev 8 --max-test 8 --max-train 96 --batch-size 16";
    succeed(start(home.path(), options, "head", "cpu", &alone));
    for damage in 0..3 {
        succeed(start(home.path(), options, "head", "cpu", &damaged));
        fs::remove_file(damaged.join("result.json")).unwrap();
        let log = damaged.join("metrics.jsonl");
        let text = fs::read(&log).unwrap();
        let end = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(4).unwrap().0;
        let newest = damaged.join("checkpoints/step-00000006");
        match damage {
            0 => fs::write(&log, &text[..end + 10]).unwrap(),
            1 => fs::write(&log, [&text[..end + 10], &vec![0; text.len() - end - 10]].concat()).unwrap(),
            _ => {
                fs::remove_dir_all(&newest).unwrap();
                fs::write(&newest, "no directory").unwrap();
            }
        }
        let output = resume(home.path(), "cpu", &damaged).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_equal_results("head", &alone, &damaged);
        fs::remove_dir_all(&damaged).unwrap();
    }
}

#[test]
fn what_changed_is_named() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    assert!(start(home.path(), TWENTY, "sparta", "cpu", &out).wait().unwrap().success());
    let config = out.join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let changed = text.replace("\"batch_size\": 16", "\"batch_size\": 8");
    fs::write(&config, &changed).unwrap();
    let output = resume(home.path(), "cpu", &out).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("batch_size was 16, is 8"), "{text}");
    assert_eq!(fs::read_to_string(&config).unwrap(), changed, "what is refused changes nothing");
}

#[test]
fn a_second_run_in_the_same_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let mut first = start(home.path(), TWENTY, "full", "cpu", &out);
    assert!(wait_for(&mut first, &out, 1), "the first run ended early");
    let second = resume(home.path(), "cpu", &out).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("another run is writing here"), "{text}");
    assert!(first.wait().unwrap().success(), "the first run was disturbed");
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

/// A run that ended before its first checkpoint starts over.
#[test]
fn without_a_checkpoint_the_run_begins_anew() {
    let home = tempfile::tempdir().unwrap();
    let [alone, killed] = ["alone", "killed"].map(|name| home.path().join(name));
    for out in [&alone, &killed] {
        assert!(start(home.path(), TWENTY, "sparta", "cpu", out).wait().unwrap().success());
    }
    fs::remove_dir_all(killed.join("checkpoints")).unwrap();
    assert!(resume(home.path(), "cpu", &killed).wait().unwrap().success());
    assert_equal_results("sparta", &alone, &killed);
}
