//! The model as it is published, in a GGUF file beside the converted one: `convert.py` and this reader know nothing of each other.

use super::{GOLDEN, HOME, last_json, model, succeed, text};
use serde_json::Value;
use sparta_core::decoder;
use sparta_core::model::{Decoder, from_f32};
use sparta_core::text::{ChatTemplate, Message, Tokenizer};
use sparta_core::weights::Weights;
use sparta_graph::DType;
use std::path::PathBuf;

/// The file and the converted model.
fn both() -> Option<(PathBuf, PathBuf)> {
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
    std::fs::write(&data, (0..32).map(line).collect::<String>()).unwrap();
    let run = ["run", "--model", file, "--data", &data, "--out", &out, "--task", "classify", "--method", "sparta"];
    let options = ["--density", "0.001", "--max-steps", "2", "--device", "cpu", "--json", "--batch-size", "4"];
    let result: Value = last_json(&succeed(&[&run[..], &options].concat()));
    assert_eq!(result["steps"], 2, "{result}");
    // The adapter's logits are compared with those of the merged model before it is published.
    succeed(&["adapter", "merge", &out, "--out", &merged, "--device", "cpu"]);
    let merged = Weights::open(&merged).unwrap();
    assert_eq!(merged.get("model.norm.weight").unwrap().dtype, DType::F32);
}
