//! SmolLM2-135M-Instruct, a real language model with its real tokenizer and chat template: `.ci/smollm2 DIR` makes it,
//! and SPARTA_REAL_MODEL=DIR/model points to it. The numbers are those of transformers on the same files. Needs
//! `cargo build --release` first.

mod gguf;
mod llama;

use serde_json::Value;
use sparta_backend_cpu::Cpu;
use sparta_core::job::PrecisionChoice;
use sparta_core::run::{InspectRequest, InspectTask, inspect_forward};
use sparta_core::text::{ChatTemplate, Message, Tokenizer};
use sparta_core::weights::{Dtype, OutTensor, TensorFile, save};
use sparta_tests::command::command;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(include_str!("golden.json")).unwrap());
static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// The model's directory.
fn model() -> Option<PathBuf> {
    let found = std::env::var_os("SPARTA_REAL_MODEL").map(PathBuf::from);
    if found.is_none() {
        sparta_tests::skipped("no real model: `.ci/smollm2 DIR` makes one, and SPARTA_REAL_MODEL=DIR/model names it");
    }
    found
}

fn text(key: &str) -> &'static str {
    GOLDEN[key].as_str().unwrap()
}

fn numbers(key: &str) -> Vec<f64> {
    GOLDEN[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn succeed(args: &[&str]) -> String {
    let output = command(HOME.path(), args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn last_json(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn the_tokenizer_and_the_template_are_those_of_transformers() {
    let Some(model) = model() else { return };
    let ids: Vec<f64> =
        Tokenizer::open(&model).unwrap().encode(text("paragraph"), None).unwrap().iter().map(|&id| id.into()).collect();
    assert_eq!(ids, numbers("ids"));
    let turns: Vec<Message> = GOLDEN["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|turn| Message { role: turn["role"].as_str().unwrap(), content: turn["content"].as_str().unwrap() })
        .collect();
    let chat = ChatTemplate::open(&model, 0).unwrap().unwrap();
    assert_eq!(chat.render(&turns).unwrap(), text("rendered"));
    assert_eq!(chat.after_answer().unwrap(), "<|im_end|>\n");
}

/// Spaces before a digit stay together, since `tokenizer.json` splits off digits first. transformers 4.57 gives these
/// ids; transformers 5 builds its own pre-tokenizer for the class in `tokenizer_config.json`, which ignores digits. For
/// this reason only, 7 of 120 random conversations have other ids there; in 17, white space of the answer joins the
/// last token of the prompt, which then belongs to the answer here and to the prompt in TRL.
#[test]
fn digits_are_split_off_first() {
    let Some(model) = model() else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    let tokens = |text: &str| -> Vec<String> {
        tokenizer.encode_plain(text).unwrap().iter().map(|&id| tokenizer.token(id).unwrap()).collect()
    };
    assert_eq!(tokens("hot  2+3"), ["hot", "ĠĠ", "2", "+", "3"]);
    assert_eq!(tokens("\r\n 2"), ["čĊĠ", "2"]);
}

/// The language model's loss on a text, and the logits after its last token.
fn loss_and_last_logits(model: PathBuf, ids: &[u32]) -> (f64, Vec<f32>) {
    let tensor = |name: &str| OutTensor {
        name: name.into(),
        dtype: Dtype::I64,
        shape: vec![1, ids.len()],
        bytes: Cow::Owned(ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect()),
    };
    let dir = tempfile::tempdir().unwrap();
    let (batch, out) = (dir.path().join("batch.safetensors"), dir.path().join("out.safetensors"));
    save(&batch, &[tensor("input_ids"), tensor("lm_labels")], &BTreeMap::new()).unwrap();
    let request = InspectRequest {
        model,
        batch,
        task: InspectTask::CausalLm,
        grads: false,
        precision: PrecisionChoice::F32,
        out: out.clone(),
    };
    let loss = inspect_forward(&request, Box::new(Cpu::new(None).unwrap())).unwrap().unwrap();
    let (shape, logits) = TensorFile::open(&out).unwrap().floats("logits").unwrap();
    (loss, logits[logits.len() - shape[2]..].to_vec())
}

/// Compared with f64; another f32 implementation may be a few times as far off as transformers in f32.
#[test]
fn loss_and_logits_are_those_of_transformers() {
    let Some(model) = model() else { return };
    let ids: Vec<u32> = numbers("ids").iter().map(|&id| id as u32).collect();
    let (loss, last) = loss_and_last_logits(model, &ids);
    let allowed = 4.0 * GOLDEN["distance_of_f32"].as_f64().unwrap();
    let expected = GOLDEN["loss"].as_f64().unwrap();
    assert!((loss - expected).abs() < allowed, "loss {loss}, expected {expected} within {allowed:e}");
    let last = last.iter().step_by(997);
    assert_eq!(last.len(), numbers("logits").len());
    for (i, (got, expected)) in last.zip(numbers("logits")).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() < allowed,
            "logit {i}: {got}, expected {expected} within {allowed:e}"
        );
    }
}

#[test]
fn it_writes_and_answers() {
    let Some(model) = model() else { return };
    let model = model.to_str().unwrap();
    let written = succeed(&["generate", model, "--device", "cpu", "--prompt", text("prompt"), "--max-tokens", "24"]);
    assert!(written.starts_with(" Paris"), "{written}");
    assert_eq!(written.trim_end(), text("greedy").trim_end());
    let messages = HOME.path().join("messages.jsonl");
    fs::write(&messages, serde_json::json!({"messages": GOLDEN["messages"]}).to_string()).unwrap();
    let answer = last_json(&succeed(&["generate", model, "--device", "cpu", messages.to_str().unwrap()]));
    assert_eq!((&answer["text"], &answer["finish"]), (&GOLDEN["answer"], &"stop".into()));
}

/// One run on 1,600 sentences, tested on 436. In the whole test set, 50.9 % are positive.
#[test]
fn sparta_learns_sst2_with_it() {
    let Some(model) = model() else { return };
    let Some(data) = sparta_test_data::find("data/glue/SST-2") else { return };
    let out = HOME.path().join("sst2");
    let paths = [&model, &data, &out].map(|path| path.to_str().unwrap());
    let run =
        ["run", "--model", paths[0], "--data", paths[1], "--out", paths[2], "--task", "sst2", "--method", "sparta"];
    let options = ["--density", "0.005", "--lr", "1e-3", "--batch-size", "16", "--epochs", "1", "--seed", "1"];
    let sizes = ["--max-train", "1600", "--max-dev", "1", "--max-test", "436", "--device", "cpu", "--json"];
    let result = last_json(&succeed(&[&run[..], &options, &sizes].concat()));
    let accuracy = result["test"]["accuracy"].as_f64().unwrap();
    assert!(accuracy >= 0.76, "{result}");
}
