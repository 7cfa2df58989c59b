//! Fine-tuning on prompts and answers with the real binary: the trained tokens in every form of data, runs of every
//! method, and wrong input. Needs `cargo build --release` first. Everything runs on the CPU backend.

use serde_json::{Value, json};
use sparta_tests::chat::{self, turn};
use sparta_tests::command::{self, failed, last_json, succeeded};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

static HOME: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

const CHAT: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";

/// The small embedded model, with this chat template or without one.
fn model(name: &str, template: Option<&str>) -> String {
    let to = HOME.path().join(name);
    if !to.exists() {
        chat::model(&to, template);
    }
    to.display().to_string()
}

fn file(name: &str, rows: &[Value]) -> String {
    let path = HOME.path().join(name);
    chat::rows(&path, rows);
    path.display().to_string()
}

fn run(args: &[&str]) -> Output {
    command::run(HOME.path(), args)
}

#[track_caller]
fn succeed(args: &[&str]) -> String {
    succeeded(run(args))
}

#[track_caller]
fn refused(args: &[&str], parts: &[&str]) {
    failed(&run(args), parts);
}

/// The training examples as text, with trained tokens in brackets.
#[track_caller]
fn shown(model: &str, data: &str, more: &[&str]) -> Vec<String> {
    let args = ["data", "show", "--task", "sft", "--split", "train", "--json", "--model", model, "--data", data];
    let stdout = succeed(&[&args, more].concat());
    let examples = stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let examples = examples.filter(|line| line["tokens"].is_array());
    let text = |example: Value| {
        let tokens = example["tokens"].as_array().unwrap().iter().zip(example["trained"].as_array().unwrap());
        let mut text = String::new();
        let mut inside = false;
        for (token, trained) in tokens {
            if trained.as_bool().unwrap() != inside {
                text.push(if inside { ']' } else { '[' });
                inside = !inside;
            }
            text.push_str(&token.as_str().unwrap().replace('Ġ', " ").replace('Ċ', "\n"));
        }
        if inside { text + "]" } else { text }
    };
    examples.map(text).collect()
}

#[test]
fn every_form_shows_what_is_trained_on() {
    let chat = model("chat", Some(CHAT));
    let messages = [
        turn("system", "be kind"),
        turn("user", "hello"),
        turn("assistant", "hi"),
        turn("user", "bye"),
        turn("assistant", "see you"),
    ];
    let data = file("messages.jsonl", &[json!({"messages": messages})]);
    let begin = "<bos> system: be kind<eos> user: hello<eos> assistant:";
    assert_eq!(shown(&chat, &data, &[]), [format!("{begin}[ hi<eos>] user: bye<eos> assistant:[ see you<eos>]")]);
    assert_eq!(
        shown(&chat, &data, &["--train-on", "last"]),
        [format!("{begin} hi<eos> user: bye<eos> assistant:[ see you<eos>]")]
    );
    let all = "<bos>[ system: be kind<eos> user: hello<eos> assistant: hi<eos> user: bye<eos> assistant: see you<eos>]";
    assert_eq!(shown(&chat, &data, &["--train-on", "all"]), [all]);

    let one = "<bos> user: hello<eos> assistant:[ hi<eos>]";
    for (name, row) in [
        ("prompt", json!({"prompt": "hello", "completion": "hi"})),
        ("instruction", json!({"instruction": "hello", "input": "", "output": "hi"})),
        ("sharegpt", json!({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]})),
        ("turns", json!({"prompt": [turn("user", "hello")], "completion": [turn("assistant", "hi")]})),
    ] {
        assert_eq!(shown(&chat, &file(&format!("{name}.jsonl"), &[row]), &[]), [one], "{name}");
    }
    assert_eq!(shown(&chat, &file("text.jsonl", &[json!({"text": "hello"})]), &[]), ["<bos>[ hello<eos>]"]);

    // Without a template, or with it turned off.
    let base = model("base", None);
    let prompt = file("plain.jsonl", &[json!({"prompt": "hello", "completion": " hi"})]);
    for (model, more) in [(&base, &[][..]), (&chat, &["--instruct", "false"])] {
        assert_eq!(shown(model, &prompt, more), ["<bos> hello[ hi<eos>]"]);
    }
    let asked = shown(&base, &file("asked.jsonl", &[json!({"instruction": "add", "input": "1", "output": "2"})]), &[]);
    assert!(asked[0].ends_with("### instruction:\nadd\n\n### input:\n1\n\n### response:\n[2<eos>]"), "{asked:?}");
}

#[test]
fn what_is_shown_is_marked_and_counted() {
    let chat = model("chat", Some(CHAT));
    let row = |answer: &str| json!({"prompt": "hello", "completion": answer});
    let unanswered = json!({"prompt": [turn("user", "hello")], "completion": [turn("user", "hi")]});
    let rows = [row("hi"), row("hi hi hi hi hi hi hi hi hi hi hi"), unanswered];
    file("counted/dev.jsonl", &rows[..1]);
    file("counted/train.jsonl", &rows);
    let data = HOME.path().join("counted").display().to_string();
    let args = ["data", "show", "--task", "sft", "--model", &chat, "--data", &data, "--max-length", "20"];
    let text = succeed(&args);
    for part in [
        "train 1: 17 tokens, 3 trained on\n  <bos> Ġu s er : Ġh ell o <eos> Ġa ss ist ant : «Ġh» «i» «<eos>»",
        "train 2: 37 tokens, 23 trained on, left out: it has more than 20 tokens",
        "0 trained on, left out: it has no tokens to train on",
        "dev 1: ",
        "1 of more than 20 tokens are left out",
        "1 are left out, as they have no tokens to train on",
        "conversations are formatted by the model's chat template; the loss covers the answers",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let found = last_json(&succeed(&[&args[..], &["--json", "--first", "0"]].concat()));
    let train = &found["splits"][0];
    assert_eq!((&train["examples"], &train["too_long"], &train["untrained"]), (&1.into(), &1.into(), &1.into()));
    assert_eq!(train["trained"], 3);
    let plan = last_json(&succeed(&[&["plan", "--device", "cpu", "--json"], &args[2..]].concat()));
    assert_eq!((&plan["data"]["train"]["trained"], &plan["data"]["too_long"]), (&3.into(), &1.into()));
    // For a task with labels, the labels are shown.
    let reviews = succeed(&["data", "show", "--split", "dev", "--first", "1"]);
    assert!(reviews.contains("dev 1: ") && reviews.contains("label ") && !reviews.contains('«'), "{reviews}");
}

fn questions() -> String {
    let rows = chat::questions(8);
    file("questions/dev.jsonl", &rows[..2]);
    file("questions/train.jsonl", &rows);
    HOME.path().join("questions").display().to_string()
}

/// A run of 60 steps, its result and directory.
fn train(method: &str, more: &[&str]) -> (Value, PathBuf) {
    let (chat, data) = (model("words", Some(chat::WORDS)), questions());
    let out = HOME.path().join(format!("run-{method}-{}", more.len()));
    let fixed = "--batch-size 8 --epochs 60 --eval-interval 30 --precision f32 --device cpu --json";
    let named =
        ["--task", "sft", "--model", &chat, "--data", &data, "--method", method, "--out", out.to_str().unwrap()];
    let args: Vec<&str> = ["run"].into_iter().chain(fixed.split(' ')).chain(named).collect();
    (last_json(&succeed(&[&args[..], more].concat())), out)
}

fn eval(path: &Path, split: &str, more: &[&str]) -> Value {
    let args = ["eval", path.to_str().unwrap(), "--split", split, "--device", "cpu", "--json"];
    last_json(&succeed(&[&args, more].concat()))["metrics"].clone()
}

/// The report has the answers to the two prompts of dev, which equal those of `generate`.
fn check_answers(result: &Value, out: &Path) {
    let answers = result["answers"].as_array().unwrap();
    let rows = chat::questions(2);
    assert_eq!(answers.len(), rows.len(), "{result}");
    let prompts: Vec<Value> = rows.iter().map(|row| json!({"messages": [row["messages"][0]]})).collect();
    let prompts = file("prompts.jsonl", &prompts);
    let generated = succeed(&["generate", out.to_str().unwrap(), &prompts, "--max-tokens", "128", "--device", "cpu"]);
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for ((answer, line), row) in answers.iter().zip(generated.lines()).zip(&rows) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let again: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["generated"], again["text"]);
        assert_eq!(answer["ended"], json!(again["finish"] == "stop"));
        let [asked, expected] = [0, 1].map(|turn| text(&row["messages"][turn]["content"]));
        assert!(text(&answer["prompt"]).contains(&asked), "{answer}");
        assert!(text(&answer["expected"]).contains(&expected), "{answer}");
        assert!(text(&answer["generated"]).trim_start().starts_with(&expected), "{answer}");
        assert!(report.contains("Answers to held-out prompts") && report.contains(&expected));
    }
}

#[test]
fn no_answers_are_written_where_none_are_wanted() {
    let (result, out) = train("full", &["--answers", "0", "--max-steps", "1"]);
    assert!(result["answers"].is_null(), "{result}");
    assert!(!fs::read_to_string(out.join("report.html")).unwrap().contains("Answers to held-out prompts"));
}

#[test]
fn every_method_teaches_the_answers() {
    for (method, more) in [
        ("sparta", &["--density", "0.2", "--lr", "5e-3"][..]),
        ("lora", &["--lora-targets", "all-linear", "--lr", "5e-3"]),
        ("full", &["--lr", "2e-3"]),
    ] {
        let (result, out) = train(method, more);
        let perplexity = result["dev"]["perplexity"].as_f64().unwrap();
        assert!(perplexity < 1.5, "{method}: {result}");
        assert_eq!(eval(&out, "dev", &[])["loss"], result["dev"]["loss"], "{method}");
        check_answers(&result, &out);
        let predicted = run(&["predict", out.to_str().unwrap(), "--device", "cpu"]);
        let text = String::from_utf8_lossy(&predicted.stderr);
        assert!(!predicted.status.success() && text.contains("does not classify; `eval` measures it"), "{text}");

        let merged = HOME.path().join(format!("merged-{method}"));
        let args = ["adapter", "merge", out.to_str().unwrap(), "--dtype", "f32", "--out", merged.to_str().unwrap()];
        succeed(&[&args[..], &["--device", "cpu"]].concat());
        let config = fs::read_to_string(merged.join("config.json")).unwrap();
        assert!(config.contains("LlamaForCausalLM") && !config.contains("id2label"), "{config}");
        let data = questions();
        let again = eval(&merged, "dev", &["--task", "sft", "--data", &data])["loss"].as_f64().unwrap();
        let loss = result["dev"]["loss"].as_f64().unwrap();
        assert!((again - loss).abs() < 1e-4 * loss.max(1.0), "{method}: {again}, in the run {loss}");
    }
}

#[test]
fn a_single_file_gives_dev_a_share() {
    let chat = model("chat", Some(CHAT));
    let rows: Vec<Value> = (0..40).map(|i| json!({"prompt": format!("number {i}"), "completion": "good"})).collect();
    let data = file("single.jsonl", &rows);
    let plan = succeed(&["plan", "--task", "sft", "--model", &chat, "--data", &data, "--device", "cpu"]);
    for part in ["36 examples", "4 examples", "90 %", "10 %", "drawn for it by the seed"] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
}

#[test]
fn wrong_input_is_explained() {
    let (chat, base) = (model("chat", Some(CHAT)), model("base", None));
    let show = |model: &str, data: &str, more: &[&str], parts: &[&str]| {
        refused(&[&["data", "show", "--task", "sft", "--model", model, "--data", data], more].concat(), parts);
    };
    let keys = file("keys.jsonl", &[json!({"question": "hello", "reply": "hi"})]);
    show(&chat, &keys, &[], &["keys.jsonl:1: expected `messages`", "got question, reply"]);
    let other = file("other.jsonl", &[json!({"prompt": "a", "completion": "b"}), json!({"text": "c"})]);
    show(&chat, &other, &[], &["other.jsonl:2: expected `prompt`, as in the rows before, got text"]);
    let turns = file("turns-only.jsonl", &[json!({"messages": [turn("user", "a"), turn("assistant", "b")]})]);
    show(&base, &turns, &[], &["example 1", "needs the model's chat template"]);
    show(&base, &turns, &["--instruct"], &["--instruct needs a chat template"]);
    show(&chat, &turns, &["--prompt", "{text}"], &["has no labels: leave out --prompt"]);
    let text = file("text-only.jsonl", &[json!({"text": "a"})]);
    show(&chat, &text, &["--instruct"], &["has no turns of a conversation: leave out --instruct"]);
    show(&chat, &turns, &["--split", "all"], &["--split all: expected one of train, dev, test"]);
    refused(&["data", "show", "--train-on", "last"], &["task sst2 has labels: leave out --train-on"]);

    let forgets = model(
        "forgets",
        Some("{{ bos_token }}{{ messages[-1].content }}{% if add_generation_prompt %} so:{% endif %}"),
    );
    show(&forgets, &turns, &[], &["train, example 1", "is not prefix-stable", "turn 2"]);
    let unanswered = file("unanswered.jsonl", &[json!({"messages": [turn("user", "a")]})]);
    let args = ["plan", "--task", "sft", "--model", &chat, "--data", &unanswered, "--device", "cpu"];
    refused(&args, &["no training example is left", "--train-on"]);
}
