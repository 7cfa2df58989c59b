//! The real binary, end to end: the embedded job with every method, plan, eval, predict, the listings, configuration
//! files, wrong input of every kind, and interruption. Needs `cargo build --release` first, for the binary and the
//! plugins beside it. Everything runs on the CPU backend, in temporary directories.

use serde_json::Value;
use sparta_tests::command::{binary, in_home, last_json, succeeded};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// The command in an empty home.
fn command(args: &[&str]) -> Command {
    sparta_tests::command::command(HOME.path(), args)
}

fn run(args: &[&str]) -> Output {
    sparta_tests::command::run(HOME.path(), args)
}

#[track_caller]
fn succeed(args: &[&str]) -> String {
    succeeded(run(args))
}

/// The embedded job with a method, its result and its directory.
fn train(method: &str, more: &[&str]) -> (Value, PathBuf) {
    let out = HOME.path().join(format!("run-{method}"));
    let args = ["run", "--method", method, "--device", "cpu", "--json", "--out", out.to_str().unwrap()];
    (last_json(&succeed(&[&args, more].concat())), out)
}

static SPARTA: LazyLock<(Value, PathBuf)> = LazyLock::new(|| train("sparta", &["--density", "0.05"]));

fn accuracy(metrics: &Value) -> f64 {
    metrics["accuracy"].as_f64().unwrap()
}

#[test]
fn the_main_job_starts_at_chance_and_learns() {
    let (result, out) = &*SPARTA;
    assert_eq!(result["stopped"], "completed");
    assert!(accuracy(&result["test"]) >= 0.95, "{result}");
    let density = result["trainable"]["density"].as_f64().unwrap();
    assert!((density - 0.05).abs() < 0.002, "{density}");
    for key in ["tokens_per_second", "device_memory", "trainable", "adapter"] {
        assert!(!result[key].is_null(), "{key}: {result}");
    }
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    let loss = first["loss"].as_f64().unwrap();
    assert!((loss - 2f64.ln()).abs() < 0.05, "the first loss is that of chance: {loss}");
    assert!(out.join("config.json").exists() && out.join("result.json").exists());
}

#[test]
fn the_baselines_learn() {
    for (method, least) in [("lora", 0.95), ("full", 0.95), ("head", 0.8)] {
        let (result, _) = train(method, &[]);
        assert!(accuracy(&result["test"]) >= least, "{method}: {result}");
    }
}

#[test]
fn eval_repeats_the_metrics_of_the_run() {
    let (result, out) = &*SPARTA;
    for split in ["dev", "test"] {
        let stdout = succeed(&["eval", out.to_str().unwrap(), "--split", split, "--device", "cpu", "--json"]);
        let metrics = &last_json(&stdout)["metrics"];
        assert_eq!(metrics["examples"], result[split]["examples"]);
        assert_eq!(metrics["accuracy"], result[split]["accuracy"]);
    }
}

fn predict(args: &[&str], input: &str) -> Output {
    let (_, out) = &*SPARTA;
    let args = [&["predict", out.to_str().unwrap(), "--device", "cpu"], args].concat();
    let mut child = command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn predict_reads_lines_and_json() {
    let lines = predict(&[], "what a wonderful film, i loved it.\nThe food was not good at all.\n");
    let lines = String::from_utf8(lines.stdout).unwrap();
    let labels: Vec<&str> = lines.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(labels, ["positive", "negative"]);
    let json = predict(&["--json"], "{\"text\": \"the room was dirty and the staff was rude.\"}\n");
    let answer = last_json(&String::from_utf8(json.stdout).unwrap());
    assert_eq!(answer["label"], "negative");
    let p = |label: &str| answer["probabilities"][label].as_f64().unwrap();
    assert!((p("negative") + p("positive") - 1.0).abs() < 1e-9 && p("negative") > 0.5, "{answer}");
    let wrong = predict(&[], "one\n\ntwo\n");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("standard input:2: expected a row, got a blank line"));
    assert_eq!(wrong.status.code(), Some(1));
}

#[test]
fn the_plan_is_made_without_a_run() {
    let plan = succeed(&["plan", "--density", "0.01", "--device", "cpu"]);
    for piece in ["sparta", "density 0.01", "trainable", "memory", "steps", "sst2"] {
        assert!(plan.contains(piece), "{plan}");
    }
    let plan = last_json(&succeed(&["plan", "--device", "cpu", "--json", "--out", "planned"]));
    assert_eq!(plan["options"]["density"], 0.05);
    assert!(!HOME.path().join("planned").exists());
}

#[test]
fn the_command_line_wins_over_the_configuration_file() {
    let file = HOME.path().join("merge.toml");
    fs::write(&file, "method = \"lora\"\nbatch-size = 7\nlr = 0.25\nlora-r = 3\nmax-train = 100\n").unwrap();
    let args = ["plan", "--config", "merge.toml", "--batch-size", "9", "--device", "cpu", "--json"];
    let plan = last_json(&succeed(&args));
    assert_eq!(plan["method"], "lora");
    assert_eq!((&plan["batch_size"], &plan["lr"]), (&9.into(), &0.25.into()));
    assert_eq!(plan["options"]["lora-r"], 3);
    assert_eq!(plan["data"]["train"]["examples"], 100);
}

#[test]
fn groups_have_rates_of_their_own() {
    let file = HOME.path().join("groups.toml");
    fs::write(&file, "group = [\"score.weight:lr=10,decay=0\", \"*norm*:decay=0.5\"]\n").unwrap();
    let plan = last_json(&succeed(&["plan", "--config", "groups.toml", "--device", "cpu", "--json"]));
    assert_eq!(plan["groups"][0]["group"], "score.weight:lr=10,decay=0");
    assert_eq!(
        (&plan["groups"][0]["tensors"], &plan["groups"][1]["group"]),
        (&1.into(), &"*norm*:lr=1,decay=0.5".into())
    );
    let text = succeed(&["plan", "--group", "*norm*:lr=2", "--device", "cpu"]);
    assert!(text.contains("group    *norm*: learning rate x 2; "), "{text}");
    let names = ["--group scores:lr=2: no trained tensor", "score.weight", "delta.model.layers.*.mlp.up_proj.weight"];
    refused(&["run", "--group", "scores:lr=2", "--device", "cpu"], 2, &names);
    refused(&["run", "--group", "score.weight:rate=2"], 2, &["--group", "got `rate`"]);

    let step = |lr: &str, more: &[&str]| {
        let out = HOME.path().join(format!("step-{}", more.len()));
        let plain =
            ["--optimizer", "sgd", "--momentum", "0", "--schedule", "constant", "--warmup", "0", "--max-steps", "1"];
        let head = ["run", "--method", "head", "--device", "cpu", "--lr", lr, "--out", out.to_str().unwrap()];
        succeed(&[&head[..], &plain, more].concat());
        fs::read(out.join("adapter/adapter.safetensors")).unwrap()
    };
    assert!(step("0.5", &[]) == step("0.25", &["--group", "score.weight:lr=2"]), "another step");
}

#[test]
fn help_has_the_options_of_the_method() {
    assert!(succeed(&["run", "--help"]).contains("--density"));
    let help = succeed(&["run", "--method", "lora", "--help"]);
    assert!(
        help.contains("--lora-r") && help.contains("Options of method lora") && !help.contains("--density"),
        "{help}"
    );
}

#[test]
fn help_is_grouped() {
    let help = succeed(&["run", "--help"]);
    let headings =
        ["Options:", "Model and data:", "Method:", "Training:", "Device:", "Output:", "Options of method sparta:"];
    let places: Vec<usize> =
        headings.iter().map(|h| help.find(&format!("\n{h}\n")).unwrap_or_else(|| panic!("{h}"))).collect();
    assert!(places.is_sorted(), "{help}");
}

/// An argument that is also the name of a command stays an argument.
#[test]
fn the_value_of_an_option_is_not_a_command() {
    let library = format!("{}sparta_method_lora{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    fs::copy(binary().with_file_name(library), HOME.path().join("plan")).unwrap();
    let plan = ["--plugin", "plan", "plan", "--max-steps", "1", "--device", "cpu", "--json"];
    assert_eq!(last_json(&succeed(&plan))["total_steps"], 1);
    let out = HOME.path().join("run/plan");
    let run =
        ["--plugin", "plan", "run", "--max-steps", "1", "--device", "cpu", "--json", "--out", out.to_str().unwrap()];
    assert_eq!(last_json(&succeed(&run))["steps"], 1);
}

#[test]
fn plugins_lists_methods_and_tasks() {
    let list = last_json(&succeed(&["plugins", "--json"]));
    let loaded: Vec<(&str, &str)> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|plugin| plugin["state"] == "loaded")
        .map(|plugin| (plugin["kind"].as_str().unwrap(), plugin["name"].as_str().unwrap()))
        .collect();
    for name in ["sparta", "lora", "full", "head"] {
        assert!(loaded.contains(&("method", name)), "{list}");
    }
    for name in ["glue", "imdb"] {
        assert!(loaded.contains(&("task", name)), "{list}");
    }
    assert!(succeed(&["plugins", "--plugin", "/no/such/place"]).contains("there is no such file"));
}

/// The executable works without its libraries beside it, and uses them if they are there.
#[test]
fn one_file_is_enough() {
    let dir = HOME.path().join("alone");
    fs::create_dir(&dir).unwrap();
    let alone = dir.join("sparta");
    fs::copy(binary(), &alone).unwrap();
    let succeed_alone = |args: &[&str]| {
        let output = in_home(Command::new(&alone), HOME.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        last_json(&String::from_utf8(output.stdout).unwrap())
    };
    let state = |list: &Value, origin: &str| -> Vec<(String, Value)> {
        let plugins = list.as_array().unwrap().iter().filter(|plugin| plugin["origin"] == origin);
        plugins.map(|plugin| (plugin["name"].as_str().unwrap().to_owned(), plugin["state"].clone())).collect()
    };
    let beside = last_json(&succeed(&["plugins", "--json"]));
    for (name, loaded) in state(&beside, "beside_executable") {
        assert_eq!(loaded, "loaded", "{name}");
    }
    for (name, shadowed) in state(&beside, "linked") {
        assert!(shadowed["shadowed"]["by"].as_str().unwrap().contains("libsparta_"), "{name}: {shadowed}");
    }
    let linked = succeed_alone(&["plugins", "--json"]);
    let mut names: Vec<String> = state(&linked, "linked").into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(
        names,
        ["classify", "cpu", "cuda", "full", "glue", "head", "imdb", "lora", "mpi", "sft", "sparta", "text"]
    );
    for (name, loaded) in state(&linked, "linked") {
        assert_eq!(loaded, "loaded", "{name}");
    }
    let args = |out| ["run", "--device", "cpu", "--max-steps", "6", "--max-dev", "50", "--json", "--out", out];
    let (with, without) = (last_json(&succeed(&args("with"))), succeed_alone(&args("without")));
    assert_eq!(with["test"], without["test"]);
}

#[test]
fn devices_marks_one_that_is_not_a_software_gpu() {
    let list = last_json(&succeed(&["devices", "--json"]));
    let list = list.as_array().unwrap();
    assert!(list.iter().any(|device| device["id"] == "cpu"));
    let auto: Vec<&Value> = list.iter().filter(|device| device["auto"] == true).collect();
    assert_eq!(auto.len(), 1);
    assert_ne!(auto[0]["kind"], "software_gpu");
    let text = succeed(&["devices"]);
    assert!(text.contains("TYPE") && text.contains("limits"), "{text}");
}

/// With stand-ins for NVIDIA's libraries: the listing, the choice of `auto`, and the message if one is missing.
#[cfg(target_os = "linux")]
#[test]
fn cuda_needs_its_libraries() {
    let dir = HOME.path().join("stand-ins");
    fs::create_dir(&dir).unwrap();
    let (source, driver) = (concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/libraries.c"), dir.join("libcuda.so.1"));
    let Ok(compiled) = Command::new("cc").args(["-shared", "-fPIC", source, "-o"]).arg(&driver).output() else {
        return sparta_tests::skipped("no C compiler `cc`");
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let told = |args: &[&str]| {
        let output = command(args).env("SPARTA_CUDA_PATH", &dir).output().unwrap();
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned())
    };
    let nvrtc = "cuda: driver for CUDA 13.0 is installed, but NVRTC is missing (libnvrtc.so.13): `pip install \
                 nvidia-cuda-nvrtc~=13.0 nvidia-cublas~=13.0` in the active Python environment";
    let [listed, _] = told(&["devices"]);
    let [_, refused] = told(&["plan", "--device", "cuda"]);
    // A machine may have NVRTC and a driver version of its own.
    if !listed.contains("cuda:0") && !std::path::Path::new("/proc/driver/nvidia/version").exists() {
        assert!(listed.contains(nvrtc) && refused.contains(nvrtc), "{listed}{refused}");
    }
    for name in ["libnvrtc.so.13", "libcublasLt.so.13"] {
        fs::hard_link(&driver, dir.join(name)).unwrap();
    }
    let [listed, _] = told(&["devices", "--json"]);
    let listed = last_json(&listed);
    let card = listed.as_array().unwrap().iter().find(|device| device["id"] == "cuda:0").unwrap();
    assert_eq!((&card["name"], &card["card"]), (&"Stand-in A".into(), &"0000:0a:00.0".into()));
    assert!(card["driver"].as_str().unwrap().ends_with(", NVRTC 13.0, cuBLASLt 13.0.2"), "{card}");
    let [plan, _] = told(&["plan", "--device", "cuda", "--json"]);
    assert_eq!(last_json(&plan)["device"]["id"], "cuda:0");
}

#[test]
fn completions_know_the_options_of_methods() {
    let script = succeed(&["completions", "bash"]);
    assert!(script.contains("--density") && script.contains("--lora-r") && script.contains("--batch-size"));
    assert!(succeed(&["completions"]).contains("sparta-cli completions fish >"));
}

#[test]
fn presets_are_listed_briefly() {
    let list = succeed(&["presets"]);
    assert!(list.contains("paper/imdb/gemma-2b/lora") && !list.contains("Table 12"), "{list}");
    let one = succeed(&["presets", "paper/imdb/gemma-2b/lora"]);
    assert!(one.contains("--lora-dropout") && one.contains("Table 12"), "{one}");
}

#[test]
fn a_closed_pipe_is_not_a_crash() {
    let mut child = command(&["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Fails with this exit code and a message that has all the pieces.
#[track_caller]
fn refused(args: &[&str], code: i32, pieces: &[&str]) {
    let output = run(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    for piece in pieces {
        assert!(message.contains(piece), "{args:?}: expected `{piece}` in: {message}");
    }
    assert!(!message.contains("panicked"), "{args:?}: {message}");
}

#[test]
fn wrong_options_are_refused() {
    refused(&["run", "--desnity", "0.1"], 2, &["--desnity", "--density"]);
    refused(&["run", "--lora-r", "4"], 2, &["--lora-r", "is an option of method lora"]);
    refused(&["run", "--method", "spatra"], 2, &["no method `spatra`", "did you mean `sparta`"]);
    refused(&["run", "--task", "sst3", "--device", "cpu"], 1, &["no task `sst3`", "sst2"]);
    for wrong in [["--epochs", "0"], ["--lr", "fast"], ["--lr", "-1"], ["--lr", "NaN"], ["--batch-size", "-3"]] {
        refused(&["run", wrong[0], wrong[1]], 2, &[wrong[0], wrong[1]]);
    }
    refused(&["run", "--schedule", "square"], 2, &["--schedule", "cosine"]);
    refused(&["trian"], 2, &["unrecognized subcommand 'trian'"]);
}

#[test]
fn wrong_densities_are_refused() {
    for wrong in ["0", "-0.1", "1.5", "NaN", "much"] {
        refused(&["run", "--density", wrong, "--device", "cpu"], 2, &["density", wrong]);
    }
    refused(&["run", "--density", "0.9", "--device", "cpu"], 1, &["density", "at most"]);
    refused(&["run", "--density", "0.3", "--targets", "vo", "--device", "cpu"], 1, &["density", "at most"]);
    refused(&["run", "--targets", "(", "--device", "cpu"], 1, &["targets"]);
}

#[test]
fn wrong_devices_are_refused() {
    refused(&["run", "--device", "cuda:99"], 2, &["cuda:99", "Devices here:", "cpu"]);
    refused(&["run", "--device", "cpu:7"], 2, &["no device `cpu:7`", "Devices here:"]);
    refused(&["run", "--device", "abacus"], 2, &["abacus", "Devices here:"]);
}

#[test]
fn wrong_configuration_files_are_refused() {
    let write = |text: &str| fs::write(HOME.path().join("wrong.toml"), text).unwrap();
    let args = ["plan", "--config", "wrong.toml"];
    for (text, pieces) in [
        ("batch_size = 3", &["wrong.toml: unknown key `batch_size`", "did you mean `batch-size`"][..]),
        ("lora-r = 3", &["wrong.toml: unknown key `lora-r`", "method lora"]),
        ("epochs = 0", &["wrong.toml", "epochs", "0"]),
        ("epochs = [1]", &["wrong.toml: epochs: expected", "[1]"]),
        ("density = 2", &["density", "2"]),
        ("lr =", &["wrong.toml: not a TOML file"]),
    ] {
        write(text);
        refused(&args, 2, pieces);
    }
    refused(&["plan", "--config", "missing.toml"], 1, &["missing.toml"]);
}

#[test]
fn wrong_models_and_data_are_refused() {
    let model = SPARTA.1.join("config.json");
    let config: Value = serde_json::from_str(&fs::read_to_string(model).unwrap()).unwrap();
    let (model, data) = (config["model"].as_str().unwrap(), config["data"].as_str().unwrap());
    let plan = |model: &str, data: &str, pieces: &[&str]| {
        refused(&["plan", "--model", model, "--task", "sst2", "--data", data, "--device", "cpu"], 1, pieces);
    };
    plan("no-such-model", data, &["no-such-model"]);
    plan(model, "no-such-data", &["no-such-data"]);
    refused(&["run", "--model", model], 2, &["--data is missing"]);
    refused(&["run", "--data", data], 2, &["--model is missing"]);
    refused(&["run", "--model", model, "--data", data], 2, &["--task is missing", "sst2"]);

    let tsv = |name: &str, train: &str, dev: Option<&str>| {
        let dir = HOME.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("train.tsv"), train).unwrap();
        if let Some(dev) = dev {
            fs::write(dir.join("dev.tsv"), dev).unwrap();
        }
    };
    let good = "sentence\tlabel\na good film\t1\na bad film\t0\n";
    tsv("malformed", "sentence\tlabel\na good film\t1\nno label\n", Some(good));
    plan(model, "malformed", &["train.tsv:3"]);
    tsv("mislabelled", "sentence\tlabel\na good film\t1\na bad film\t7\n", Some(good));
    plan(model, "mislabelled", &["train.tsv:3", "7"]);
    tsv("halved", good, None);
    plan(model, "halved", &["dev.tsv", "halved"]);
}

#[test]
fn wrong_models_for_prediction_are_refused() {
    refused(&["predict", "no-such-run"], 1, &["no-such-run"]);
    let (_, out) = &*SPARTA;
    refused(&["eval", out.to_str().unwrap(), "--split", "exam", "--device", "cpu"], 2, &["no split `exam`", "test"]);
    refused(&["run", "--out", out.to_str().unwrap(), "--device", "cpu"], 2, &["already holds a run"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_what_it_learned() {
    let out = HOME.path().join("interrupted");
    let args = ["run", "--epochs", "500", "--device", "cpu", "--json", "--out", out.to_str().unwrap()];
    let mut child = command(&args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_steps(&out.join("metrics.jsonl"), 5);
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let status = child.wait().unwrap();
    let result: Value = serde_json::from_str(&fs::read_to_string(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(result["stopped"], "interrupted");
    assert!(result["steps"].as_u64().unwrap() >= 5);
    let args = ["eval", out.to_str().unwrap(), "--max-examples", "20", "--device", "cpu", "--json"];
    assert_eq!(last_json(&succeed(&args))["metrics"]["examples"], 20);
}

fn wait_for_steps(metrics: &Path, steps: usize) {
    let begin = Instant::now();
    while fs::read_to_string(metrics).map_or(0, |text| text.lines().count()) < steps {
        assert!(begin.elapsed() < Duration::from_secs(120), "no steps in {}", metrics.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
