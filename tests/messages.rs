//! Messages and exit codes of the real binary in unusual situations: paths, names of directories, limits of the system,
//! slow input. Needs `cargo build --release` first.

use serde_json::Value;
use sparta_tests::command::command;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::LazyLock;

/// A home with the unpacked embedded job and a finished run `run`.
static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let home = tempfile::tempdir().unwrap();
    let output = run_in(home.path(), &["run", "--out", "run", "--method", "head", "--max-steps", "2"], &SMALL);
    assert!(output.status.success(), "{}", said(&output));
    home
});

const SMALL: [&str; 8] = ["--device", "cpu", "--max-dev", "8", "--max-test", "8", "--max-train", "64"];

fn run_in(home: &Path, args: &[&str], more: &[&str]) -> Output {
    command(home, &[args, more].concat()).stdin(Stdio::null()).output().unwrap()
}

fn run(args: &[&str], more: &[&str]) -> Output {
    run_in(HOME.path(), args, more)
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// `model` or `data` of the embedded job.
fn embedded(name: &str) -> PathBuf {
    let cache = HOME.path().join("cache/sparta");
    fs::read_dir(cache).unwrap().next().unwrap().unwrap().path().join(name)
}

#[track_caller]
fn check(output: &Output, code: i32, parts: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
}

#[test]
fn an_interrupted_run_exits_with_130() {
    let args = ["run", "--until-eof", "--out", "interrupted", "--epochs", "1000"];
    check(&run(&args, &SMALL), 130, &["interrupted after"]);
}

#[test]
fn the_length_of_a_run_is_shown() {
    let plan = |args: &[&str]| run(&[&["plan", "--method", "head"], args].concat(), &SMALL);
    let more = plan(&["--epochs", "1", "--max-steps", "1000", "--batch-size", "16"]);
    check(&more, 0, &["4 in all, 4 per epoch, each of 16 examples", "--max-steps is 1000, but the run ends"]);
    let less = plan(&["--epochs", "2", "--max-steps", "3", "--batch-size", "16"]);
    check(&less, 0, &["3 in all, 4 per epoch", "--max-steps ends the run after step 3 of 8"]);
    check(&run(&["run", "--method", "lora", "--help"], &[]), 0, &["[default: 2e-4, that of method lora]"]);
}

#[test]
fn a_mistyped_directory_is_distinguished_from_a_name_on_the_hub() {
    let job = |option: &str, value: &str| {
        let (model, data) = (embedded("model"), embedded("data"));
        let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
        let [model, data] = if option == "model" { [value, data] } else { [model, value] };
        let args = ["plan", "--model", model, "--data", data, "--task", "sst2", "--method", "head", "--device", "cpu"];
        command(HOME.path(), &args).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    for option in ["model", "data"] {
        let output = job(option, "models/tiny-lama");
        check(&output, 1, &["there is no directory models/tiny-lama here, so it was looked for on the hub", "OFFLINE"]);
        check(&job(option, "./tiny/lama/x"), 1, &["./tiny/lama/x: there is no such file or directory"]);
    }
    check(&job("model", "run"), 1, &["a run directory, not a model", "adapter merge"]);
}

#[test]
fn runs_at_once_get_directories_of_their_own() {
    let home = tempfile::tempdir().unwrap();
    let args = [&["run", "--method", "head", "--max-steps", "1"][..], &SMALL].concat();
    let children: Vec<_> = (0..3)
        .map(|_| command(home.path(), &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let runs = || fs::read_dir(home.path().join("runs")).unwrap().count();
    assert_eq!(runs(), 3);
    // A failed run leaves no directory.
    let failed = run_in(home.path(), &["run", "--method", "head", "--max-length", "1"], &SMALL);
    check(&failed, 1, &["raise --max-length"]);
    assert_eq!(runs(), 3);
}

#[test]
fn a_directory_that_is_taken_is_refused_at_once() {
    let output = run(&["run", "--out", "run", "--method", "head"], &SMALL);
    check(&output, 2, &["run already holds a run"]);
    assert!(!said(&output).contains("steps"), "{}", said(&output));
}

#[test]
fn a_run_is_resumed_from_another_directory() {
    let home = tempfile::tempdir().unwrap();
    for part in ["model", "data"] {
        let to = home.path().join(part);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(embedded(part)).unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let args = ["run", "--model", "model", "--data", "data", "--task", "sst2", "--method", "head", "--out", "run"];
    check(&run_in(home.path(), &args, &[&SMALL[..], &["--max-steps", "1"]].concat()), 0, &[]);
    let elsewhere = home.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let resumed = command(home.path(), &["run", "--resume", "../run", "--max-steps", "2", "--device", "cpu"])
        .current_dir(&elsewhere)
        .output()
        .unwrap();
    check(&resumed, 0, &["resuming after step 1"]);
}

#[test]
fn a_held_out_set_alone_can_be_measured() {
    let alone = HOME.path().join("alone");
    fs::create_dir_all(&alone).unwrap();
    fs::copy(embedded("data").join("test.jsonl"), alone.join("test.jsonl")).unwrap();
    let output = run(&["eval", "run", "--data", "alone", "--device", "cpu", "--max-examples", "8"], &[]);
    check(&output, 0, &["accuracy", "(8 examples)"]);
}

#[test]
fn predict_answers_as_texts_arrive() {
    let mut child = command(HOME.path(), &["predict", "run", "--device", "cpu", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut texts, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    for text in ["a fine film", "a much longer text about a film that nobody has seen, and nobody will"] {
        writeln!(texts, "{text}").unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert!(answer["label"].is_string(), "{answer}");
    }
    writeln!(texts, "\nbad").unwrap();
    drop(texts);
    assert!(answers.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// Three rows, three answers, in every input format.
#[test]
fn predict_reads_texts_as_tasks_do() {
    let answers = |name: &str, content: &str| {
        fs::write(HOME.path().join(name), content).unwrap();
        run(&["predict", "run", name, "--device", "cpu"], &[])
    };
    let lines = answers("a.txt", " a fine film \na dull plot\t\nx\n");
    check(&lines, 0, &[]);
    for (name, content) in [
        ("b.txt", "\u{feff} a fine film \r\na dull plot\t\r\nx"),
        ("c.jsonl", "\u{feff}{\"text\": \" a fine film \"}\n{\"sentence\": \"a dull plot\\t\"}\n{\"text\": \"x\"}\n\n"),
    ] {
        assert_eq!(answers(name, content).stdout, lines.stdout, "{name}");
    }
    let json = "[{\"text\": \" a fine film \"}, {\"text\": \"a dull plot\\t\"}, {\"text\": \"x\"}]";
    assert_eq!(answers("d.json", json).stdout, lines.stdout);
    let csv = "text,label\n a fine film ,1\n\"a dull plot\t\",0\nx,\n";
    assert_eq!(answers("e.csv", csv).stdout, lines.stdout);
    check(
        &answers("f", "text,label\na,1\n"),
        1,
        &["f:1: \"text,label\" looks like the header of a table", "--format csv"],
    );
}

#[cfg(unix)]
#[test]
fn limits_of_the_system_are_sentences() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let small = [&["run", "--method", "head", "--max-steps", "1"][..], &SMALL].concat();
    let many = command(HOME.path(), &[&small[..], &["--out", "many"]].concat())
        .env("RAYON_NUM_THREADS", "100000")
        .output()
        .unwrap();
    check(&many, 0, &["threads are used"]);
    let inner = command(HOME.path(), &[&small[..], &["--out", "limited", "--method", "lora"]].concat());
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -f 8; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    limited.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(HOME.path());
    check(&limited.output().unwrap(), 1, &["error: ", "arge"]);
    let odd = command(HOME.path(), &["plan"]).arg("--model").arg(OsStr::from_bytes(b"m\xff")).output().unwrap();
    check(&odd, 2, &["is not UTF-8"]);
    let pipe = HOME.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for args in [["predict", "run", "pipe"], ["plan", "--config", "pipe"], ["sweep", "pipe", "--out=s"]] {
        check(&run(&args, &[]), 1, &["a directory or a device"]);
    }
}

/// A directory with `config.json` and tokenizer is enough for a plan, that of a run's data included.
#[test]
fn a_model_without_weights_can_be_planned_for() {
    let model = HOME.path().join("weightless");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(embedded("model").join(name), model.join(name)).unwrap();
    }
    let (model, data) = (model.display().to_string(), embedded("data").display().to_string());
    let of = |command: &'static str| [command, "--model", &model, "--data", &data, "--task", "sst2"];
    let planned = run(&of("plan"), &SMALL);
    check(&planned, 0, &["64", "the model has no weight files here"]);
    let whole =
        run(&["plan", "--model", &embedded("model").display().to_string(), "--data", &data, "--task", "sst2"], &SMALL);
    let memory = |output: &Output| {
        let text = said(output);
        text.lines().filter(|line| line.contains("iB")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(memory(&planned), memory(&whole));
    check(&run(&of("run"), &SMALL), 1, &["no model.safetensors"]);
    let small = ["--max-train", "64", "--assume", "memory=1MiB"];
    check(&run(&of("plan"), &small), 1, &["the model has no weight files here", "the run needs"]);
}
