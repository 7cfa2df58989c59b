//! llama.cpp as another reader of GGUF files, from the Python package xllamacpp: `.ci/llama DIR` installs it, and
//! SPARTA_LLAMA_PYTHON names the interpreter that has it.

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What llama.cpp computes from: a model's file, and LoRA layers on it.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    pub model: &'a Path,
    pub lora: Option<&'a Path>,
}

impl<'a> Files<'a> {
    pub fn model(model: &'a Path) -> Files<'a> {
        Files { model, lora: None }
    }
}

pub struct Llama(PathBuf);

impl Llama {
    pub fn find() -> Option<Llama> {
        let python = std::env::var_os("SPARTA_LLAMA_PYTHON").map(PathBuf::from);
        if python.is_none() {
            crate::skipped(
                "no llama.cpp: `.ci/llama DIR` installs it, and SPARTA_LLAMA_PYTHON=DIR/bin/python names it",
            );
        }
        python.map(Llama)
    }

    /// The most probable `top` next tokens after a prompt, a text or a list of tokens: ids and logarithms of probabilities.
    pub fn next(&self, files: Files, prompt: impl Into<Value>, top: usize) -> Vec<(usize, f64)> {
        serde_json::from_value(self.ask(files, json!({"prompt": prompt.into(), "top": top}))).unwrap()
    }

    /// The outputs of a classifier.
    pub fn classes(&self, files: Files, tokens: &[u32], count: usize) -> Vec<f64> {
        serde_json::from_value(self.ask(files, json!({"prompt": tokens, "classes": count}))).unwrap()
    }

    #[track_caller]
    fn ask(&self, files: Files, mut question: Value) -> Value {
        question["model"] = json!(files.model);
        question["lora"] = json!(files.lora);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf/llama.py");
        let mut command = Command::new(&self.0);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.0.display()));
        child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", files.model.display());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Logits as logarithms of probabilities.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    assert!(logits.iter().all(|logit| logit.is_finite()), "the trainer's logits are not finite");
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let shifted = || logits.iter().map(|&x| f64::from(x) - f64::from(largest));
    let sum = shifted().map(f64::exp).sum::<f64>().ln();
    shifted().map(|x| x - sum).collect()
}

/// The largest difference of what llama.cpp has found to these logits.
pub fn largest_difference(theirs: &[(usize, f64)], logits: &[f32]) -> f64 {
    let ours = log_softmax(logits);
    theirs.iter().map(|&(id, theirs)| (theirs - ours[id]).abs()).fold(0.0, f64::max)
}

/// The root of the mean square difference, likewise.
pub fn difference(theirs: &[(usize, f64)], logits: &[f32]) -> f64 {
    let ours = log_softmax(logits);
    let squares = theirs.iter().map(|&(id, theirs)| (theirs - ours[id]).powi(2)).sum::<f64>();
    (squares / theirs.len() as f64).sqrt()
}
