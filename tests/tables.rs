//! Anybody's table: odd columns, encodings, labels and formats, from training to prediction, on the embedded model.
//! Needs
//! `cargo build --release` first.

use serde_json::{Value, json};
use sparta_tests::command::{failed, run, succeeded};
use std::fs;
use std::path::{Path, PathBuf};

/// A short run of the head alone.
const SHORT: [&str; 8] = ["--method", "head", "--lr", "0.03", "--max-steps", "12", "--device", "cpu"];

fn model() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/model").display().to_string()
}

#[track_caller]
fn ran(home: &Path, args: &[&str]) -> String {
    succeeded(run(home, args))
}

#[track_caller]
fn refused(home: &Path, args: &[&str], parts: &[&str]) {
    failed(&run(home, args), parts);
}

/// Trains on a table, with further options; returns what is printed on standard output.
#[track_caller]
fn train(home: &Path, data: &str, out: &str, more: &[&str]) -> String {
    let model = model();
    let args = ["run", "--task", "classify", "--model", &model, "--data", data, "--out", out];
    ran(home, &[&args[..], &SHORT, more].concat())
}

fn read(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn last(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

const ASPECTS: [(&str, &str); 3] =
    [("food", "the soup was warm"), ("room", "the bed was soft"), ("film", "the plot was dull")];

/// UTF-16 with a byte-order mark, `;`, quotes with line breaks and separators, columns with spaces and capitals.
fn odd_csv(rows: usize) -> Vec<u8> {
    let mut text = "\u{feff}Nr;Review Body;Aspect\r\n".to_owned();
    for i in 0..rows {
        let (label, words) = ASPECTS[i % 3];
        text += &format!("{i};\"{words}; \"\"no {i}\"\"\r\nreally \";{label}\r\n");
    }
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn classes_of_an_odd_table() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("my reviews.csv"), odd_csv(90)).unwrap();
    let columns = ["--text", "review body", "--label", "ASPECT"];
    let plan = train(home, "my reviews.csv", "run", &columns);
    for part in ["classify (film, food, room)", "72 examples", "9 examples", "is split by the seed", "column `Aspect`"]
    {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    let result = read(home.join("run/result.json"));
    let test = &result["test"];
    let names: Vec<&Value> = test["per_label"].as_array().unwrap().iter().map(|of| &of["label"]).collect();
    assert_eq!(names, ["film", "food", "room"]);
    let support: Vec<u64> =
        test["per_label"].as_array().unwrap().iter().map(|of| of["support"].as_u64().unwrap()).collect();
    assert_eq!(support, [3, 3, 3], "each label has its share");
    assert!(test["accuracy"].as_f64().unwrap() > 0.7, "{test}");

    let eval = ran(home, &["eval", "run", "--device", "cpu", "--json"]);
    assert_eq!(last(&eval)["metrics"]["confusion"], test["confusion"]);
    let table = ran(home, &["eval", "run", "--device", "cpu"]);
    assert!(table.contains("label  precision  recall  f1      examples"), "{table}");

    let balanced = [&columns[..], &["--class-weights", "balanced", "--method", "sparta", "--max-steps", "2"]].concat();
    let plan = train(home, "my reviews.csv", "balanced", &balanced);
    assert!(plan.contains("Weights of the classes in training: film 1.000, food 1.000, room 1.000"), "{plan}");

    // Other data is one split, whole, with the labels of the run: another format, other names, one label missing.
    fs::write(home.join("other.jsonl"), "{\"body\": \"the soup was warm\", \"kind\": \"food\"}\n").unwrap();
    let other =
        ["eval", "run", "--data", "other.jsonl", "--text", "body", "--label", "kind", "--device", "cpu", "--json"];
    let metrics = &last(&ran(home, &other))["metrics"];
    assert_eq!((&metrics["examples"], &metrics["per_label"][1]["support"]), (&json!(1), &json!(1)));
    fs::write(home.join("wrong.jsonl"), "{\"body\": \"a\", \"kind\": \"car\"}\n").unwrap();
    let wrong = ["eval", "run", "--data", "wrong.jsonl", "--text", "body", "--label", "kind", "--device", "cpu"];
    refused(home, &wrong, &["wrong.jsonl:1: expected one of the labels film, food, room, got `car`"]);

    // The columns used in training are found again, and plain lines need none.
    let predicted = ran(home, &["predict", "run", "my reviews.csv", "--device", "cpu"]);
    assert_eq!(predicted.lines().count(), 90);
    fs::write(home.join("lines.txt"), "the bed was soft\n").unwrap();
    assert!(ran(home, &["predict", "run", "lines.txt", "--device", "cpu"]).contains("\troom 0."));

    let resumed = ["run", "--resume", "run", "--device", "cpu", "--epochs", "9", "--max-steps", "14"];
    ran(home, &resumed);
    fs::write(home.join("my reviews.csv"), odd_csv(91)).unwrap();
    refused(home, &["run", "--resume", "run", "--device", "cpu", "--epochs", "10", "--max-steps", "16"], &["data"]);
}

#[test]
fn several_labels_and_numbers() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let rows: Vec<Value> = (0..60)
        .map(|i| {
            let (label, words) = ASPECTS[i % 3];
            let (other, more) = ASPECTS[(i + 1) % 3];
            match i % 4 {
                0 => json!({"content": format!("nothing of note {i}"), "labels": []}),
                1 => json!({"content": format!("{words}, {more}, {i}"), "labels": [label, other]}),
                _ => json!({"content": format!("{words}, {i}"), "labels": [label]}),
            }
        })
        .collect();
    fs::write(home.join("tags.json"), serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    let plan = train(home, "tags.json", "tags", &["--batch-size", "8"]);
    assert!(plan.contains("classify (any of film, food, room)") && plan.contains("f1"), "{plan}");
    let answer = last(&ran(home, &["predict", "tags", "tags.json", "--device", "cpu", "--json"]));
    assert!(answer["labels"].is_array() && answer["probabilities"]["food"].is_number(), "{answer}");
    let eval = ran(home, &["eval", "tags", "--device", "cpu"]);
    assert!(eval.contains("exact") && eval.contains("recall"), "{eval}");

    let lines: String =
        (0..60).map(|i| format!("the soup {i} was {}\t{}\n", "warm ".repeat(i % 5), 0.5 * (i % 5) as f64)).collect();
    fs::write(home.join("stars.tsv"), format!("sentence\tstars\n{lines}")).unwrap();
    let plan = train(home, "stars.tsv", "stars", &["--label", "stars", "--batch-size", "8"]);
    assert!(plan.contains("classify (the number stars)") && plan.contains("pearson"), "{plan}");
    let answers = ran(home, &["predict", "stars", "stars.tsv", "--device", "cpu", "--json"]);
    assert_eq!(answers.lines().count(), 60);
    ran(home, &["adapter", "merge", "stars", "--out", "merged", "--device", "cpu"]);
    let config = read(home.join("merged/config.json"));
    assert_eq!((&config["problem_type"], &config["id2label"]["0"]), (&json!("regression"), &json!("stars")));
    let number = |answers: &str| last(answers)["number"].as_f64().unwrap();
    let merged = ran(home, &["predict", "merged", "stars.tsv", "--device", "cpu", "--json"]);
    assert!((number(&merged) - number(&answers)).abs() < 0.05, "{merged}");
}

#[test]
fn one_reader_for_every_format() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let data = home.join("data");
    fs::create_dir_all(&data).unwrap();
    let rows = |n: usize| (0..n).map(|i| format!("{},{}\n", ASPECTS[i % 3].1, ASPECTS[i % 3].0)).collect::<String>();
    fs::write(data.join("train.csv"), format!("text,label\n{}", rows(30))).unwrap();
    fs::write(data.join("dev.csv"), format!("text,label\n{}", rows(6))).unwrap();
    fs::write(data.join("test.csv"), "text\nthe soup was warm\n").unwrap();
    let plan = train(home, "data", "run", &[]);
    assert!(plan.contains("test.csv has no labels and is not used"), "{plan}");
    assert_eq!(ran(home, &["predict", "run", "data/test.csv", "--device", "cpu"]).lines().count(), 1);

    let texts = [" the film was warm ", "the plot is \u{a0}dull"];
    let object = |text: &str| json!({"text": text, "id": 7}).to_string();
    let utf16: Vec<u8> =
        format!("\u{feff}{}\n{}", texts[0], texts[1]).encode_utf16().flat_map(u16::to_be_bytes).collect();
    let forms: [(&str, Vec<u8>); 9] = [
        ("plain.jsonl", texts.map(object).join("\n").into()),
        ("bom.jsonl", format!("\u{feff}{}\n", texts.map(object).join("\r\n")).into()),
        ("bom.txt", format!("\u{feff}{}\r\n{}\r\n", texts[0], texts[1]).into()),
        ("wide.txt", utf16),
        ("array.json", format!("[{}]", texts.map(object).join(",\n")).into()),
        ("table.csv", format!("id,text,label\n1,\"{}\",x\n2,{},\n", texts[0], texts[1]).into()),
        ("table.tsv", format!("label\tSentence\nx\t{}\ny\t{}\n", texts[0], texts[1]).into()),
        ("named", format!("content\n{}\n{}\n", texts[0], texts[1]).into()),
        ("folder/1.txt", texts[0].into()),
    ];
    fs::create_dir_all(home.join("folder")).unwrap();
    for (name, content) in &forms {
        fs::write(home.join(name), content).unwrap();
    }
    fs::write(home.join("folder/2.txt"), texts[1]).unwrap();
    let expected = ran(home, &["predict", "run", "plain.jsonl", "--device", "cpu"]);
    assert_eq!(expected.lines().count(), 2);
    for (name, _) in &forms[1..] {
        let more: &[&str] = if *name == "named" { &["--format", "csv"] } else { &[] };
        let name = if name.starts_with("folder") { "folder" } else { name };
        assert_eq!(ran(home, &[&["predict", "run", name, "--device", "cpu"], more].concat()), expected, "{name}");
    }
    fs::write(home.join("brace.txt"), "{sic} the film was warm\n").unwrap();
    assert_eq!(ran(home, &["predict", "run", "brace.txt", "--device", "cpu"]).lines().count(), 1);
    fs::write(home.join("odd.csv"), "body,stars\na,1\n").unwrap();
    refused(
        home,
        &["predict", "run", "odd.csv", "--device", "cpu"],
        &["odd.csv: expected a column of texts", "body, stars", "--text"],
    );
}

#[test]
fn options_come_from_files_and_are_explained() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let model = model();
    let rows: String = (0..40).map(|i| format!("{},{}\n", ASPECTS[i % 3].1, i % 3)).collect();
    fs::write(home.join("t.csv"), format!("body,grade\n{rows}")).unwrap();
    let config =
        format!("model = {model:?}\ntask = \"classify\"\ndata = \"t.csv\"\ntext = \"body\"\nlabel = \"grade\"\n");
    fs::write(home.join("run.toml"), config).unwrap();
    let plan = ran(home, &[&["plan", "--config", "run.toml"], &SHORT[..]].concat());
    assert!(plan.contains("classify (0, 1, 2)"), "{plan}");
    let help = ran(home, &["run", "--task", "classify", "--help"]);
    assert!(help.contains("Options of task classify") && help.contains("--label-separator"), "{help}");
    let base = ["plan", "--model", &model, "--data", "t.csv", "--device", "cpu"];
    refused(
        home,
        &[&base[..], &["--task", "sst2", "--text", "body"]].concat(),
        &["`text` is an option of task classify"],
    );
    let named = ["--task", "classify", "--text", "body"];
    refused(home, &[&base[..], &named].concat(), &["t.csv: expected a column label, labels, target or class"]);
    refused(home, &[&base[..], &named, &["--label", "grad"]].concat(), &["expected a column `grad`, named by --label"]);
    let sweep = format!(
        "[base]\nmodel = {model:?}\ntask = 'classify'\ndata = 't.csv'\ntext = 'body'\nlabel = 'grade'\nmethod = 'head'\n\
         max-steps = 2\n[grid]\ntarget = ['number']\nseed = [1, 2]\n"
    );
    fs::write(home.join("grid.toml"), sweep).unwrap();
    ran(home, &["sweep", "grid.toml", "--out", "sweep", "--device", "cpu"]);
    let table = fs::read_to_string(home.join("sweep/comparison.md")).unwrap();
    assert!(table.contains("classify pearson"), "{table}");
}
