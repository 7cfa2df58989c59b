//! `sparta-cli generate`, end to end: texts, conversations, JSONL, sampling, and every way a text can end. Needs
//! `cargo build --release` first. The models are golden ones with a tokenizer that names their tokens t0, t1 ..., and
//! a real one if the shared data exists.

use serde_json::{Value, json};
use sparta_backend_cpu::Cpu;
use sparta_core::adapter::AppliedAdapter;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{Finish, Generator, Prompt, Sampling, Writing};
use sparta_suites::golden::{Layout, Source, model_directory};
use sparta_tests::command::{command, last_json, succeeded};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::LazyLock;

static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
static LLAMA: LazyLock<tempfile::TempDir> = LazyLock::new(|| model("llama", None));

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }} t2 {% else %}t1 \
                        {{ m.content }} {% endif %}{% endfor %}";

/// A golden language model whose tokens are words; t2 is special. `end` is what its generation_config.json has.
fn model(family: &str, end: Option<u32>) -> tempfile::TempDir {
    let source = Source::compact();
    let dir = model_directory(&source, family, Layout { lm: true, f32: false, version_4: false });
    let vocab: serde_json::Map<String, Value> = (0..300).map(|id| (format!("t{id}"), id.into())).collect();
    let special = json!({"id": 2, "content": "t2", "single_word": true, "lstrip": false, "rstrip": false,
                         "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "t0", "vocab": vocab}
    });
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", json!({"chat_template": TEMPLATE}).to_string());
    if let Some(end) = end {
        write("generation_config.json", json!({"eos_token_id": [end]}).to_string());
    }
    dir
}

fn words(ids: &Value) -> String {
    ids.as_array().unwrap().iter().map(|id| format!(" t{id}")).collect()
}

/// The golden prompt of a family and what follows.
fn golden(family: &str) -> (String, String) {
    let all: Value = serde_json::from_str(include_str!("golden/greedy.json")).unwrap();
    (words(&all[family]["prompt"]).trim_start().to_owned(), words(&all[family]["tokens"]))
}

/// The first n words.
fn first(text: &str, n: usize) -> String {
    text.split(' ').take(n + 1).collect::<Vec<_>>().join(" ")
}

fn generate(model: &Path, args: &[&str], input: &str) -> Output {
    let all = [&["generate", model.to_str().unwrap(), "--device", "cpu"], args].concat();
    let mut child = command(HOME.path(), &all);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn succeed(model: &Path, args: &[&str], input: &str) -> String {
    succeeded(generate(model, args, input))
}

/// The JSON object for one prompt.
#[track_caller]
fn result(model: &Path, prompt: &str, args: &[&str]) -> Value {
    let stdout = succeed(model, &[&["--prompt", prompt, "--json"], args].concat(), "");
    last_json(&stdout)
}

#[track_caller]
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let (prompt, text) = golden("llama");
    assert_eq!(succeed(LLAMA.path(), &["--prompt", &prompt, "--max-tokens", "24"], ""), format!("{text}\n"));
    let result = result(LLAMA.path(), &prompt, &["--max-tokens", "7"]);
    assert_eq!(result, json!({"text": first(&text, 7), "tokens": 7, "finish": "length", "prompt_tokens": 5}));
}

#[test]
fn whoever_is_shown_a_text_can_end_it() {
    let applied = AppliedAdapter::open(LLAMA.path(), None, &PluginSet::default()).unwrap();
    let device = Box::new(Cpu::new(Some(1)).unwrap());
    let mut generator = Generator::open(&applied, device, None, 0).unwrap();
    let (prompt, text) = golden("llama");
    let sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 };
    let writing = Writing { sampling, max_tokens: 24, stop: vec![] };
    let mut shown = String::new();
    let written = generator.write(&Prompt::Text(prompt), &writing, |piece| {
        shown.push_str(piece);
        Ok(if shown.len() > 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    let written = written.unwrap();
    assert_eq!((written.text.as_str(), written.finish), (shown.as_str(), Finish::Interrupted));
    assert!(written.tokens < 24 && text.starts_with(&shown), "{shown}");
}

#[test]
fn a_stop_text_ends_it_across_tokens() {
    let (prompt, text) = golden("llama");
    // The end of the third token and the beginning of the fourth.
    let third = first(&text, 3);
    let rest = &text[third.len()..];
    let stop = format!("{}{}", &third[third.len() - 1..], &rest[..3]);
    let result = result(LLAMA.path(), &prompt, &["--stop", "no such text", "--stop", &stop]);
    assert_eq!((&result["text"], &result["finish"]), (&json!(third[..third.len() - 1]), &json!("stop")));
    let none = generate(LLAMA.path(), &["--prompt", &prompt, "--stop", ""], "");
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn the_models_own_end_ends_it() {
    let (prompt, text) = golden("llama");
    let fourth: u32 = text.split(" t").nth(4).unwrap().parse().unwrap();
    let result = result(model("llama", Some(fourth)).path(), &prompt, &[]);
    assert_eq!(result, json!({"text": first(&text, 3), "tokens": 3, "finish": "stop", "prompt_tokens": 5}));
}

#[test]
fn a_full_context_is_a_clear_end() {
    let (prompt, text) = golden("llama");
    // The last token needs no place in the cache.
    let result = result(LLAMA.path(), &prompt, &["--context", "10"]);
    assert_eq!(result, json!({"text": first(&text, 6), "tokens": 6, "finish": "context", "prompt_tokens": 5}));
    let long = generate(LLAMA.path(), &["--prompt", &prompt, "--context", "4"], "");
    let message = String::from_utf8_lossy(&long.stderr).into_owned();
    assert_eq!(long.status.code(), Some(1));
    assert!(message.contains("the prompt has 5 tokens, but there is room for 4") && message.contains("--context"));
    let wide = generate(LLAMA.path(), &["--prompt", &prompt, "--context", "65"], "");
    assert_eq!(wide.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wide.stderr).contains("takes up to 64 tokens"));
}

#[test]
fn prompts_come_as_lines_or_json() {
    let (prompt, text) = golden("llama");
    let jsonl = format!("{}\n{}\n", json!({"prompt": prompt}), json!({"prompt": "t1 t9"}));
    let answers = lines(&succeed(LLAMA.path(), &["--max-tokens", "3"], &jsonl));
    assert_eq!(answers[0], json!({"text": first(&text, 3), "tokens": 3, "finish": "length", "prompt_tokens": 5}));
    let file = HOME.path().join("prompts.txt");
    fs::write(&file, format!("{prompt}\nt1 t9\n")).unwrap();
    let same = lines(&succeed(LLAMA.path(), &["--max-tokens", "3", file.to_str().unwrap()], ""));
    assert_eq!(answers, same);
    let wrong = generate(LLAMA.path(), &[], "{\"prompt\": \"t1\"}\n{\"txt\": \"t1\"}\n");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("standard input:2: expected the key `prompt`"));
    assert_eq!((wrong.status.code(), wrong.stdout.iter().filter(|b| **b == b'\n').count()), (Some(1), 1));
}

#[test]
fn a_seed_repeats_its_texts() {
    let draw = |seed: &str| {
        let args = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--max-tokens", "20", "--seed", seed];
        succeed(LLAMA.path(), &args, "t1 t9\nt1 t9\n")
    };
    let once = draw("3");
    assert_eq!(once, draw("3"));
    assert_ne!(once, draw("4"));
    let texts = lines(&once);
    assert_ne!(texts[0]["text"], texts[1]["text"], "each text has its own draws");
    let (prompt, text) = golden("llama");
    let only = result(LLAMA.path(), &prompt, &["--temperature", "9", "--top-k", "1", "--max-tokens", "9"]);
    assert_eq!(only["text"], first(&text, 9));
}

/// The template begins a user's turn with t1 and ends an answer with t2, which the model generates after 21 tokens.
#[test]
fn a_conversation_continues() {
    let model = model("mistral", Some(299));
    let (prompt, text) = golden("mistral");
    let (question, answer) = (prompt.strip_prefix("t1 ").unwrap(), first(&text, 21));
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = |turns: &[Value]| json!({"messages": turns}).to_string() + "\n";
    let asked = turn("user", question);
    let found = lines(&succeed(model.path(), &[], &messages(std::slice::from_ref(&asked))));
    assert_eq!(found[0], json!({"text": answer, "tokens": 21, "finish": "stop", "prompt_tokens": 5}));

    let chat = lines(&succeed(model.path(), &["--chat", "--json"], &format!("{question}\n\nt7 t8\n")));
    assert_eq!((&chat[0], chat.len()), (&found[0], 2));
    let turns = [asked, turn("assistant", &answer), turn("user", "t7 t8")];
    assert_eq!(lines(&succeed(model.path(), &[], &messages(&turns))), chat[1..], "the cache changes nothing");

    let one = succeed(model.path(), &["--chat", "--prompt", question], "");
    assert_eq!(one, format!("{answer}\n"));
    let system = result(model.path(), "t7", &["--chat", "--system", "t5 t6", "--max-tokens", "2"]);
    assert_eq!(system["prompt_tokens"], 5);
    let full = generate(model.path(), &["--chat", "--context", "20"], &format!("{question}\nt7\n"));
    assert!(full.status.success() && String::from_utf8_lossy(&full.stderr).contains("the context is full"));
}

/// A run generates like its merged model.
#[test]
fn runs_write_by_what_they_have_learned() {
    let text = HOME.path().join("text.txt");
    fs::write(&text, "t1 t9 t8 t7 t6 t5 t4 t3\n".repeat(40)).unwrap();
    for method in ["full", "lora", "sparta"] {
        let out = HOME.path().join(format!("run-{method}"));
        let paths = [LLAMA.path(), &text, &out].map(|path| path.to_str().unwrap());
        let args = [
            "--method",
            method,
            "--lr",
            "1e-2",
            "--dtype",
            "f32",
            "--device",
            "cpu",
            "--batch-tokens",
            "64",
            "--epochs",
            "40",
        ];
        let args = [&["pretrain", "--model", paths[0], "--data", paths[1], "--out", paths[2]], &args[..]].concat();
        let output = command(HOME.path(), &args).output().unwrap();
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        let written = result(&out, "t1 t9", &["--max-tokens", "12"]);
        assert_eq!(written, result(&out.join("model"), "t1 t9", &["--max-tokens", "12"]), "{method}");
        if method == "full" {
            assert!(written["text"].as_str().unwrap().starts_with(" t8 t7 t6 t5 t4 t3"), "{written}");
        }
    }
}

#[test]
fn a_classifier_writes_nothing() {
    let model = model_directory(&Source::compact(), "llama", Layout { lm: false, f32: false, version_4: false });
    fs::copy(LLAMA.path().join("tokenizer.json"), model.path().join("tokenizer.json")).unwrap();
    let output = generate(model.path(), &["--prompt", "t1"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("only language models generate text"));
}

#[test]
fn a_small_real_model_tells_a_story() {
    let Some(model) = sparta_test_data::find("data/models/stories260K") else { return };
    let story = ", there was a little girl named Lily. She loved to play outside in the park.";
    let model = fs::canonicalize(model).unwrap();
    assert!(succeed(&model, &["--prompt", "Once upon a time"], "").starts_with(story));
    let chat = generate(&model, &["--chat"], "hello\n");
    assert!(String::from_utf8_lossy(&chat.stderr).contains("the model has no chat template"));
}
