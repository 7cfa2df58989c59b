//! Ranks of whole trained models against an independent implementation, and the commands `rank`, `plan` without data
//! and `report` end to end. Needs `cargo build --release` first; complete golden data and real configurations are
//! optional test data.

use serde_json::Value;
use sparta_core::analysis::rank::{Precision, ranks};
use sparta_core::weights::{Dtype, OutTensor, TensorFile, Weights, save};
use sparta_tests::command::{run, succeeded};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::LazyLock;

/// The command in an empty home.
fn command(args: &[&str]) -> Output {
    static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    run(HOME.path(), args)
}

#[track_caller]
fn succeed(args: &[&str]) -> String {
    succeeded(command(args))
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Tensors {
    let file = TensorFile::open(path).unwrap();
    file.names().map(|name| (name.to_owned(), file.floats(name).unwrap())).collect()
}

fn write(dir: &Path, tensors: &Tensors) {
    let tensor = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| OutTensor {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: shape.clone(),
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
    };
    fs::create_dir_all(dir).unwrap();
    let tensors: Vec<OutTensor> = tensors.iter().map(tensor).collect();
    save(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

/// The golden model after training, with the method's changes merged.
fn trained(golden: &Path, method: &str) -> Tensors {
    let mut weights = read(&golden.join("model.safetensors"));
    let train = golden.join("train");
    let found = read(&train.join(method).join("final.safetensors"));
    if method.starts_with("sparta") {
        let indices = TensorFile::open(train.join("sparta_indices.safetensors")).unwrap();
        for name in indices.names() {
            let values = &mut weights.get_mut(name).unwrap().1;
            for (i, delta) in indices.integers(name).unwrap().1.into_iter().zip(&found[&format!("delta.{name}")].1) {
                values[i as usize] += delta;
            }
        }
    } else if method == "lora" {
        for (name, (shape, a)) in found.iter().filter(|(name, _)| name.ends_with(".lora_A")) {
            let module = name.trim_end_matches(".lora_A");
            let (b, r, columns) = (&found[&format!("{module}.lora_B")].1, shape[0], shape[1]);
            // alpha / r is 2.
            for (at, w) in weights.get_mut(&format!("{module}.weight")).unwrap().1.iter_mut().enumerate() {
                let (i, j) = (at / columns, at % columns);
                *w += 2.0 * (0..r).map(|k| b[i * r + k] * a[k * columns + j]).sum::<f32>();
            }
        }
    } else {
        weights.extend(found);
    }
    weights
}

#[test]
fn ranks_agree_with_the_oracle() {
    let Some(oracle) = sparta_test_data::find("oracle/golden") else { return };
    let text = fs::read_to_string(oracle.join("rank_report.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (case, report) in expected.as_object().unwrap() {
        let (family, method) = case.split_once('/').unwrap();
        if method == "head" {
            continue;
        }
        let golden = oracle.join(family);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &trained(&golden, method));
        let (base, tuned) = (Weights::open(&golden).unwrap(), Weights::open(dir.path()).unwrap());
        let found = ranks(&base, &tuned, Precision::F32, |_, _, _| {}).unwrap();
        for matrix in &found.matrices {
            let Some(expected) = report["matrices"].get(&matrix.name).filter(|_| matrix.name != "score.weight") else {
                continue;
            };
            let what = format!("{case} {}", matrix.name);
            assert_eq!(expected["f32"]["rank"], matrix.rank, "{what}");
            let (tolerance, sigma) = (matrix.tolerance, f64::from(matrix.singular_values[0]));
            let close = |key: &str, got: f64| (expected["f32"][key].as_f64().unwrap() / got - 1.0).abs() < 1e-4;
            assert!(close("tol", tolerance) && close("sigma_max", sigma), "{what}: {tolerance} {sigma}");
            compared += 1;
        }
    }
    assert!(compared >= 80, "{compared} matrices were compared");
}

/// A matrix of rank 3 among unchanged ones, through the command.
#[test]
fn the_command_prints_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"];
    let mut weights: Tensors = names.map(|name| (name.to_owned(), (vec![12, 8], vec![0.5; 96]))).into();
    write(Path::new(&path("base")), &weights);
    for k in 0..3 {
        weights.get_mut(names[2]).unwrap().1[k * 8 + k] = 2.0;
    }
    write(Path::new(&path("tuned")), &weights);
    let stdout = succeed(&["rank", &path("base"), &path("tuned"), "--json", "--plot", &path("plot.svg")]);
    let report: Value = serde_json::from_str(stdout.trim()).unwrap();
    let rank = |i: usize| (report["matrices"][i]["rank"].as_u64(), report["matrices"][i]["deficiency"].as_u64());
    assert_eq!([0, 1, 2].map(rank), [(Some(0), Some(8)), (Some(0), Some(8)), (Some(3), Some(5))]);
    assert!(fs::read_to_string(path("plot.svg")).unwrap().starts_with("<svg"));
    let text = succeed(&["rank", &path("base"), &path("tuned")]);
    assert!(text.contains("mlp.up_proj") && text.contains("[ 12, 8 ]"), "{text}");
    let wrong = command(&["rank", &path("base"), &path("none")]);
    assert_eq!(wrong.status.code(), Some(1), "{}", String::from_utf8_lossy(&wrong.stderr));
}

/// Table 1 of the paper from the real configurations, without weights.
#[test]
fn plan_reproduces_table_1_without_weights() {
    for (model, row) in [
        ("gemma-2b-it", "GB for P = 2e9, as in Table 1 16.0 16.0 8.8 6.4 5.2 4.2"),
        ("mistral-7b-instruct-v0.3", "GB for P = 7e9, as in Table 1 56.0 56.0 30.8 22.4 18.2 14.8"),
    ] {
        let Some(model) = sparta_test_data::find(&format!("data/tokenizers/{model}")) else { return };
        for path in [model.clone(), model.join("config.json")] {
            let path = path.to_str().unwrap();
            let assume = "memory=1TiB";
            let text =
                succeed(&["plan", "--model", path, "--method", "sparta", "--density", "0.5", "--assume", assume]);
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.lines().any(|line| words(line) == row), "{text}");
            for kind in ["weights", "indices", "base values", "deltas", "optimizer state", "activations and scratch"] {
                assert!(text.contains(&format!("\n  {kind}")), "{kind}: {text}");
            }
        }
    }
}

/// Plans for devices that are not present: what fits with which choices, and the advice if nothing does.
#[test]
fn plan_answers_for_devices_that_are_not_here() {
    let Some(model) = sparta_test_data::find("data/tokenizers/gemma-2b-it") else { return };
    let plan = |assume: &str, method: &[&str]| {
        let model = ["plan", "--model", model.to_str().unwrap(), "--batch-size", "16", "--max-length", "256"];
        let output = command(&[&model[..], &["--assume", assume], method].concat());
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), text)
    };
    let (sparse, sparser) = (["--method", "sparta", "--density", "0.05"], ["--method", "sparta", "--density", "0.005"]);
    for method in [&sparse[..], &sparser, &["--method", "lora"]] {
        assert_eq!(plan("memory=80GiB,max-buffer=80GiB", method).0, Some(0), "{method:?}");
    }
    for method in [&sparser[..], &["--method", "lora"]] {
        let (code, text) = plan("memory=8GiB", method);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("tokens per micro-batch, chosen for the device's memory"), "{text}");
    }
    let (code, text) = plan("memory=4GiB", &sparse);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("GiB, but the device has 4.00 GiB. To make it fit: "), "{text}");
    assert_eq!(text.split("To make it fit: ").nth(1).unwrap().split("; ").count(), 3, "{text}");
    let (code, text) = plan("memory=80GiB,max-buffer=256MiB", &sparse);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the device's buffers hold at most 256.0 MiB"), "{text}");
}

#[test]
fn reports_stand_alone_and_escape() {
    let dir = tempfile::tempdir().unwrap();
    // These names break a page that does not escape them.
    let runs = ["<b>one", "two"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    for (run, method) in runs.iter().zip(["sparta", "lora"]) {
        succeed(&["run", "--method", method, "--max-steps", "4", "--max-test", "50", "--device", "cpu", "--out", run]);
    }
    let one = fs::read_to_string(Path::new(&runs[0]).join("report.html")).unwrap();
    let out = dir.path().join("both.html");
    succeed(&["report", &runs[0], &runs[1], "--out", out.to_str().unwrap()]);
    let both = fs::read_to_string(&out).unwrap();
    for page in [&one, &both] {
        assert!(page.contains("&lt;b&gt;one") && !page.contains("<b>one"));
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("Confusion matrix, test: 50 examples"));
        for title in ["training loss", "dev accuracy", "learning rate", "gradient norm"] {
            assert!(page.contains(title), "{title}");
        }
        let outside = ["src=", "href=", "url(", "@import", "fetch(", "import("];
        assert!(outside.iter().all(|reference| !page.contains(reference)), "the page refers to something outside");
    }
    assert!(both.contains("2 runs compared"));
    // Each method's own options are columns of a table that a click sorts.
    assert!(both.contains("<th class=\"number\">lora-r</th>") && both.contains("data-value=\"0.05\""), "{both}");
    assert!(one.contains("Lengths of training examples") && one.contains("application/json"));
    // A killed run: no result, and half a line.
    fs::remove_file(Path::new(&runs[1]).join("result.json")).unwrap();
    let metrics = Path::new(&runs[1]).join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, &text[..text.len() - 9]).unwrap();
    succeed(&["report", &runs[1]]);
    let killed = fs::read_to_string(Path::new(&runs[1]).join("report.html")).unwrap();
    assert!(killed.contains("not finished: 4 of 4 steps"));
    let wrong = command(&["report", dir.path().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("not a run directory"));
}
