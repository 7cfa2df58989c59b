//! The published model as a GGUF file, compared with the converted one: `convert.py` and this reader are independent.

use super::{GOLDEN, HOME, last_json, loss_and_last_logits, model, succeed, text};
use serde_json::Value;
use sparta_core::decoder;
use sparta_core::model::{Decoder, from_f32};
use sparta_core::text::{ChatTemplate, Message, Tokenizer};
use sparta_core::weights::Weights;
use sparta_graph::DType;
use std::fs;
use std::path::{Path, PathBuf};

/// The file and the converted model.
pub fn both() -> Option<(PathBuf, PathBuf)> {
    let model = model()?;
    let file = model.with_extension("gguf");
    if !file.is_file() {
        sparta_tests::skipped(&format!("{} is absent; `.ci/smollm2 DIR` leaves it there", file.display()));
        return None;
    }
    Some((file, model))
}

#[test]
fn weights_and_configuration_are_those_of_the_converted_model() {
    let Some((file, model)) = both() else { return };
    let (read, converted) = (Weights::open(&file).unwrap(), Weights::open(&model).unwrap());
    assert_eq!(read.names().collect::<Vec<_>>(), converted.names().collect::<Vec<_>>());
    for name in converted.names() {
        let (ours, theirs) = (read.get(name).unwrap(), converted.get(name).unwrap());
        assert_eq!((ours.dtype, ours.shape), (DType::F32, theirs.shape));
        assert!(from_f32(DType::F16, &ours.to_f32().unwrap()).unwrap() == theirs.raw(), "{name}");
    }
    let (ours, theirs) = (decoder::open(&file).unwrap(), decoder::open(&model).unwrap());
    assert_eq!(ours, Decoder { dtype: ours.dtype, ..theirs });
    assert_eq!(decoder::end_tokens(&file, &ours).unwrap(), [0, 2]);
}

#[test]
fn tokenizer_and_template_are_those_of_the_converted_model() {
    let Some((file, model)) = both() else { return };
    let (ours, theirs) = (Tokenizer::open(&file).unwrap(), Tokenizer::open(&model).unwrap());
    let odd = [
        "",
        " two  spaces\n\n\tand tabs",
        "12345 caf\u{e9} \u{4f60}\u{597d} \u{1f600}",
        "<|im_start|>user<|im_end|>\n",
    ];
    for text in odd.iter().copied().chain([text("paragraph"), text("rendered"), text("greedy")]) {
        let ids = ours.encode(text, None).unwrap();
        assert_eq!(ids, theirs.encode(text, None).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&ids).unwrap(), theirs.decode(&ids).unwrap());
    }
    assert_eq!((ours.pad_id(), ours.eos_id()), (theirs.pad_id(), theirs.eos_id()));
    let turns = [Message { role: "user", content: "And of Spain?" }];
    let render = |path| ChatTemplate::open(path, 0).unwrap().unwrap().render(&turns).unwrap();
    assert_eq!(render(&file), render(&model));
}

/// The plan of a run.
fn plan(run: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(run).join("plan.json")).unwrap()).unwrap()
}

#[test]
fn it_writes_trains_and_is_merged() {
    let Some((file, _)) = both() else { return };
    let file = file.to_str().unwrap();
    let written = succeed(&["generate", file, "--device", "cpu", "--prompt", text("prompt"), "--max-tokens", "24"]);
    assert!(written.starts_with(" Paris"), "{written}");
    assert_eq!(GOLDEN["greedy"].as_str().unwrap().trim_end(), written.trim_end());
    let [data, out, merged] =
        ["gguf.jsonl", "gguf-run", "gguf-merged"].map(|name| HOME.path().join(name).to_str().unwrap().to_owned());
    let line = |i: usize| serde_json::json!({"text": format!("film {i} is fine"), "label": i % 2}).to_string() + "\n";
    fs::write(&data, (0..32).map(line).collect::<String>()).unwrap();
    let run = ["run", "--model", file, "--data", &data, "--out", &out, "--task", "classify", "--method", "sparta"];
    let options = ["--density", "0.001", "--max-steps", "2", "--device", "cpu", "--json", "--batch-size", "4"];
    let result: Value = last_json(&succeed(&[&run[..], &options, &["--precision", "f32"]].concat()));
    assert_eq!(result["steps"], 2, "{result}");
    // The adapter's logits are compared with those of the merged model before it is published.
    succeed(&["adapter", "merge", &out, "--out", &merged, "--device", "cpu"]);
    let merged = Weights::open(&merged).unwrap();
    assert_eq!(merged.get("model.layers.0.mlp.up_proj.weight").unwrap().dtype, DType::F32);
    // In bf16 a weight takes two bytes, also with the adapter.
    let out = HOME.path().join("gguf-bf16").to_str().unwrap().to_owned();
    let run = ["run", "--model", file, "--data", &data, "--out", &out, "--task", "classify", "--method", "sparta"];
    let result = last_json(&succeed(&[&run[..], &options, &["--precision", "bf16"]].concat()));
    assert_eq!(result["steps"], 2, "{result}");
    let evaluated = last_json(&succeed(&["eval", &out, "--split", "dev", "--device", "cpu", "--json"]));
    assert!(evaluated.is_object(), "{evaluated}");
    // A run of LoRA, and the bf16 run's adapter merged in the file's own types.
    let lora = HOME.path().join("gguf-lora").to_str().unwrap().to_owned();
    let run = ["run", "--model", file, "--data", &data, "--out", &lora, "--task", "classify", "--method", "lora"];
    let common = ["--max-steps", "2", "--device", "cpu", "--json", "--batch-size", "4"];
    let result = last_json(&succeed(&[&run[..], &common].concat()));
    assert_eq!(result["steps"], 2, "{result}");
    // By default, quantized weights are used in computations as 16-bit ones are.
    let reason = plan(&lora)["precision"]["reason"].to_string();
    assert!(reason.contains("quantized") || reason.contains("does not multiply 16-bit floats"), "{reason}");
    let own = HOME.path().join("own.gguf").to_str().unwrap().to_owned();
    let said = succeed(&["adapter", "merge", &out, "--out", &own, "--dtype", "own", "--device", "cpu"]);
    assert!(said.contains("rounded to blocks"), "{said}");
    let (own, base) = (Weights::open(&own).unwrap(), Weights::open(file).unwrap());
    let name = "model.layers.3.mlp.up_proj.weight";
    assert_eq!(own.get(name).unwrap().blocks(), base.get(name).unwrap().blocks());
}

/// The file of Gemma 3.
pub fn gemma() -> Option<PathBuf> {
    let found = std::env::var_os("SPARTA_REAL_GGUF").map(PathBuf::from);
    if found.is_none() {
        sparta_tests::skipped("no Gemma 3: `.ci/gemma3 DIR` makes one, and SPARTA_REAL_GGUF=DIR/model.gguf names it");
    }
    found
}

/// A few steps with the file's own types, Q4_K, Q5_0, Q6_K and Q8_0, which the device holds as they are.
#[test]
fn gemma_3_trains_in_its_blocks() {
    let Some(file) = gemma() else { return };
    let (stored, file) = (fs::metadata(&file).unwrap().len(), file.to_str().unwrap());
    let data = HOME.path().join("gemma.jsonl").to_str().unwrap().to_owned();
    let line = |i: usize| serde_json::json!({"text": format!("film {i} is fine"), "label": i % 2}).to_string() + "\n";
    fs::write(&data, (0..32).map(line).collect::<String>()).unwrap();
    for (method, precision) in [(&["sparta", "--density", "0.005"][..], "f32"), (&["lora"], "bf16")] {
        let out = HOME.path().join(format!("gemma-{}", method[0])).to_str().unwrap().to_owned();
        let run = ["run", "--model", file, "--data", &data, "--out", &out, "--task", "classify", "--max-steps", "2"];
        let more = ["--device", "cpu", "--json", "--batch-size", "4", "--precision", precision, "--method"];
        let result: Value = last_json(&succeed(&[&run[..], &more, method].concat()));
        assert_eq!(result["steps"], 2, "{result}");
        assert_eq!(result["device_memory"], result["planned_memory"], "{result}");
        let weights = plan(&out)["memory"]["weights"].as_u64().unwrap();
        assert!(weights < stored, "{weights} bytes of weights on the device, {stored} in the file");
        // The merged model has the decoded weights of all blocks.
        let check = |key: &str| result["merge_check"][key].as_f64().unwrap();
        assert!(check("largest_difference") <= check("bound"), "{result}");
    }
}

/// Decoded when they are read, the weights are those that products decode on the device.
#[test]
fn gemma_3_computes_what_its_decoded_model_does() {
    let Some(file) = gemma() else { return };
    let decoded = HOME.path().join("gemma-decoded");
    let [from, to] = [&file, &decoded].map(|path| path.to_str().unwrap());
    succeed(&["adapter", "merge", from, "--out", to, "--dtype", "f32", "--device", "cpu"]);
    let (ours, theirs) = (Tokenizer::open(&file).unwrap(), Tokenizer::open(&decoded).unwrap());
    let ids = ours.encode(text("paragraph"), None).unwrap();
    assert_eq!(ids, theirs.encode(text("paragraph"), None).unwrap());
    assert!(loss_and_last_logits(file, &ids) == loss_and_last_logits(decoded, &ids));
}

/// Gemma 3 of 270M in Q4_K_M (types Q4_K, Q5_0, Q6_K, Q8_0). Ids and numbers are those of transformers 5.23 on the same
/// file, in f64; in f32 it is off by 1e-6 in the loss and 1e-5 in the logits.
#[test]
fn gemma_3_computes_what_transformers_does() {
    let Some(model) = gemma() else { return };
    let text = "The capital of France is Paris. In 2024 about 2,100,000 people lived there; the Seine (777 km) flows through \
                it.\n\nA caf\u{e9} opens at 7:30.";
    let expected = [
        2, 818, 5279, 529, 7001, 563, 9079, 236761, 799, 236743, 236778, 236771, 236778, 236812, 1003, 236743, 236778,
        236764, 236770, 236771, 236771, 236764, 236771, 236771, 236771, 1331, 11742, 993, 236793, 506, 69598, 568,
        236832, 236832, 236832, 7251, 236768, 17752, 1343, 625, 236761, 108, 236776, 33443, 19015, 657, 236743, 236832,
        236787, 236800, 236771, 236761,
    ];
    let ids = Tokenizer::open(&model).unwrap().encode(text, None).unwrap();
    assert_eq!(ids, expected);
    let (loss, last) = loss_and_last_logits(model, &ids);
    assert!((loss - 2.674_012_661).abs() < 1e-5, "loss {loss}");
    let logits =
        [-10.857_863, 9.629_403, 3.667_597, 4.198_250, 0.032_870, 3.136_820, 1.005_455, -3.966_169, -1.386_063];
    for (got, expected) in last.iter().step_by(29_999).zip(logits) {
        assert!((f64::from(*got) - expected).abs() < 1e-4, "{got}, expected {expected}");
    }
}
