//! From the files that we write, llama.cpp computes what the trainer does. Its products of quantized weights round the
//! activations to 8 bits; how far that takes its results from ours is known from the published file.

use super::gguf::{both, gemma};
use super::{HOME, loss_and_last_logits, succeed};
use sparta_core::text::Tokenizer;
use sparta_tests::llama::{Files, Llama, difference};
use std::fs;
use std::path::{Path, PathBuf};

const PROMPT: &str = "Film 3 was shown in 2024, and the capital of France is";

/// Tokens compared: the most probable ones.
const TOP: usize = 1000;

fn place(name: &str) -> String {
    HOME.path().join(name).to_str().unwrap().to_owned()
}

/// The trainer's logits of the token after the prompt.
fn ours(model: &Path) -> Vec<f32> {
    let ids = Tokenizer::open(model).unwrap().encode(PROMPT, None).unwrap();
    loss_and_last_logits(model.to_owned(), &ids).1
}

/// A run on a few texts, at a learning rate that changes what the model says.
fn trained(model: &Path, method: &[&str], name: &str) -> String {
    let (data, out) = (place(&format!("{name}.jsonl")), place(name));
    let line = |i: usize| {
        serde_json::json!({"text": format!("Film {i} was shown in {}, and the capital of France is Lyon.", 1990 + i)})
            .to_string()
            + "\n"
    };
    fs::write(&data, (0..32).map(line).collect::<String>()).unwrap();
    let model = model.to_str().unwrap();
    let run = ["run", "--model", model, "--data", &data, "--out", &out, "--task", "text", "--device", "cpu"];
    let options = ["--max-steps", "6", "--lr", "5e-3", "--batch-size", "4", "--precision", "f32", "--method"];
    succeed(&[&run[..], &options, method].concat());
    out
}

fn merged(run: &str, dtype: &str) -> PathBuf {
    let out = format!("{run}-{dtype}.gguf");
    succeed(&["adapter", "merge", run, "--out", &out, "--dtype", dtype, "--device", "cpu"]);
    out.into()
}

/// A file as published: the trainer's logits, and how far llama.cpp is off.
fn published(llama: &Llama, file: &Path) -> (Vec<f32>, f64) {
    let logits = ours(file);
    let off = difference(&llama.next(Files::model(file), PROMPT, TOP), &logits);
    assert!(off < 0.5, "{}: {off}", file.display());
    (logits, off)
}

/// Compares models merged in these types, each with how much further off than the published file it may be. Those with
/// weights in f32 round nothing; for f16, activations are rounded to 11 bits of precision, for bf16 to 8.
fn compared(llama: &Llama, file: &Path, name: &str, types: &[(&str, f64)]) {
    let (base, eight_bits) = published(llama, file);
    let run = trained(file, &["sparta", "--density", "0.005"], &format!("llama-{name}"));
    for &(dtype, factor) in types {
        let merged = merged(&run, dtype);
        let found = llama.next(Files::model(&merged), PROMPT, TOP);
        let [off, moved] = [&ours(&merged), &base].map(|logits| difference(&found, logits));
        assert!(off <= factor * eight_bits, "{name} {dtype}: {off}, the published file {eight_bits}");
        assert!(moved > 4.0 * off, "{name} {dtype}: {off} off, and training has moved it by {moved}");
    }
}

#[test]
fn llama_cpp_computes_what_the_trainer_does() {
    let (Some(llama), Some((file, _))) = (Llama::find(), both()) else { return };
    let types = [("f32", 0.01), ("f16", 0.125), ("bf16", 1.0), ("q8_0", 2.0), ("own", 2.0)];
    compared(&llama, &file, "smollm2", &types);
}

/// In Q4_K, Q5_0, Q6_K and Q8_0.
#[test]
fn llama_cpp_computes_with_gemma_3() {
    let (Some(llama), Some(file)) = (Llama::find(), gemma()) else { return };
    compared(&llama, &file, "gemma", &[("own", 2.0)]);
}

#[test]
fn llama_cpp_adds_the_lora_layers_of_a_run() {
    let (Some(llama), Some((file, _))) = (Llama::find(), both()) else { return };
    let (base, eight_bits) = published(&llama, &file);
    let run = trained(&file, &["lora"], "llama-lora");
    let lora = PathBuf::from(format!("{run}.gguf"));
    succeed(&["adapter", "export", &run, "--format", "gguf", "--out", lora.to_str().unwrap()]);
    let found = llama.next(Files { model: &file, lora: Some(&lora) }, PROMPT, TOP);
    let [off, moved] = [&ours(&merged(&run, "f32")), &base].map(|logits| difference(&found, logits));
    assert!(off <= 2.0 * eight_bits && moved > 4.0 * off, "{off}, moved {moved}, the published file {eight_bits}");
}
