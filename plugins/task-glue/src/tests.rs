//! Every task in every layout: on small files, and on the real ones if they are available.

use super::*;
use sparta_plugin::task::{Example, Recipe, Source, Take};
use sparta_task_files::testing::{self, Column, parquet};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn open(task: &str, data: &Path) -> Result<Box<dyn Dataset>, Error> {
    Glue.open(&OpenRequest::new(task, data))
}

fn refusal(task: &str, data: &Path) -> String {
    open(task, data).err().expect("an error").0
}

fn read(data: &dyn Dataset, source: &Source) -> Vec<Example> {
    let parts = source.parts.iter().flat_map(|part| data.examples(part).unwrap());
    parts.map(Result::unwrap).collect()
}

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    testing::write(dir.path(), files);
    dir
}

fn example(text: &str, pair: Option<&str>, label: u32) -> Example {
    Example { text: text.to_owned(), pair: pair.map(str::to_owned), label, ..Example::default() }
}

fn source(parts: &[&str], take: Take) -> Source {
    Source { parts: parts.iter().map(|&part| part.to_owned()).collect(), take }
}

fn write_parquet(path: PathBuf, texts: [&str; 2], labels: &[i64]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let column = |name: &str| Column::texts((0..labels.len()).map(|i| format!("{name} {i}")));
    let label = Column::integers(labels.iter().copied());
    let columns = [(texts[0], column(texts[0])), (texts[1], column(texts[1])), ("label", label)];
    fs::write(path, parquet(&columns, Default::default())).unwrap();
}

#[test]
fn the_description_is_consistent() {
    let info = Glue.describe();
    let ids: Vec<&str> = info.tasks.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["cola", "sst2", "mrpc", "rte", "wnli", "stsb", "qnli", "qqp", "mnli"]);
    for task in &info.tasks {
        assert!(task.metrics.contains(&task.primary), "{}", task.id);
        let (primary, labels) = match task.id.as_str() {
            "cola" => ("mcc", 2),
            "mnli" => ("accuracy", 3),
            "stsb" => ("pearson", 1),
            _ => ("accuracy", 2),
        };
        assert_eq!((task.primary.as_str(), task.labels.len()), (primary, labels));
        assert_eq!(task.pair, !["cola", "sst2"].contains(&task.id.as_str()));
    }
    let unknown = refusal("sst3", Path::new("."));
    assert_eq!(unknown, "no task `sst3` in glue: expected one of cola, sst2, mrpc, rte, wnli, stsb, qnli, qqp, mnli");
}

/// The header and a row of each task in the GLUE zip, and the example that the row is.
#[test]
fn the_zip_of_every_task_is_read() {
    let pair = |label| example("a", Some("b"), label);
    let mnli = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
                sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n";
    let qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
    let mrpc = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n";
    let stsb = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n";
    let cases = [
        ("cola", "CoLA", "", "gj04\t1\t\tA \"b.", example("A \"b.", None, 1)),
        ("sst2", "SST-2", "sentence\tlabel\r\n", "a b \t0\r", example("a b ", None, 0)),
        ("mrpc", "MRPC", mrpc, "1\t5\t6\ta\t\"b", example("a", Some("\"b"), 1)),
        ("rte", "RTE", "index\tsentence1\tsentence2\tlabel\n", "0\ta\tb\tnot_entailment", pair(1)),
        ("wnli", "WNLI", "index\tsentence1\tsentence2\tlabel\n", "0\ta\tb\t1", pair(1)),
        ("stsb", "STS-B", stsb, "0\tg\tf\t2012\t1\tn\tn\ta\tb\t3.750", Example { number: Some(3.75), ..pair(0) }),
        ("qnli", "QNLI", "index\tquestion\tsentence\tlabel\n", "0\ta\tb\tentailment", pair(0)),
        ("qqp", "QQP", qqp, "0\t1\t2\ta\nc\tb\t1", example("a\nc", Some("b"), 1)),
        ("mnli", "MNLI", mnli, "0\t0\t0\tg\t\t\t\t\ta\tb\tneutral\tcontradiction", pair(2)),
    ];
    for (task, folder, header, row, expected) in cases {
        let dev = if task == "mnli" { "dev_matched.tsv" } else { "dev.tsv" };
        let dir = dir(&[
            (&format!("{folder}/train.tsv"), &format!("{header}{row}\n{row}\n\n")),
            (&format!("{folder}/{dev}"), &format!("{header}{row}\n")),
            (&format!("{folder}/test.tsv"), "index\tsentence\n"),
        ]);
        let data = open(task, dir.path()).unwrap();
        let recipe = data.recipe();
        assert_eq!(read(&*data, &recipe.train), [expected.clone(), expected.clone()], "{task}");
        assert_eq!(recipe.test, source(&[&format!("{folder}/{dev}")], Take::All), "{task}");
        assert_eq!(read(&*data, &recipe.test), [expected], "{task}");
        let itself = open(task, &dir.path().join(folder)).unwrap().recipe();
        assert_eq!(itself.test, source(&[dev], Take::All), "{task}");
    }
}

#[test]
fn dev_is_drawn_off_the_training_split() {
    let sizes = [("sst2", 1000, None), ("rte", 300, None), ("qnli", 5000, Some(100_000)), ("qqp", 5000, Some(100_000))];
    let pair = "{\"text\":\"a\",\"pair\":\"b\",\"label\":1}\n";
    let train_and_validation = |line: &str| dir(&[("train.jsonl", &line.repeat(10_000)), ("validation.jsonl", line)]);
    for (task, count, cap) in sizes {
        let line = if task == "sst2" { "{\"text\":\"a\",\"label\":1}\n" } else { pair };
        let dir = train_and_validation(line);
        let recipe = open(task, dir.path()).unwrap().recipe();
        assert_eq!(recipe.train, source(&["train.jsonl"], Take::Rest { cap }), "{task}");
        assert_eq!(recipe.dev, source(&["train.jsonl"], Take::Draw { count }), "{task}");
        assert_eq!(recipe.test, source(&["validation.jsonl"], Take::All), "{task}");
        let note =
            "There is no labelled test.jsonl: validation.jsonl stands in as test, and dev is drawn from train.jsonl.";
        assert_eq!(recipe.notes, [note]);
    }
    let mnli = open("mnli", train_and_validation(pair).path()).unwrap().recipe();
    assert_eq!(mnli.dev, source(&["train.jsonl"], Take::Draw { count: 2000 }));
    assert_eq!(mnli.notes[0], "train.jsonl: 10000 examples are too few to draw 10000; 2000 are drawn instead.");
}

#[test]
fn jsonl_with_three_files_is_used_as_it_is() {
    let line = "{\"question\":\"a\",\"sentence\":\"b\",\"label\":\"not_entailment\"}\n";
    let dir = dir(&[("train.jsonl", line), ("dev.jsonl", line), ("test.jsonl", line)]);
    let data = open("qnli", dir.path()).unwrap();
    let all = |part| source(&[part], Take::All);
    let notes = Vec::new();
    let (train, dev, test) = (all("train.jsonl"), all("dev.jsonl"), all("test.jsonl"));
    assert_eq!(data.recipe(), Recipe { train, dev, test, notes, task: None });
    assert_eq!(read(&*data, &data.recipe().dev), [example("a", Some("b"), 1)]);
}

#[test]
fn without_a_development_file_dev_is_drawn_too() {
    let line = "{\"text\":\"a\",\"label\":0}\n";
    let dir = dir(&[("train.jsonl", &line.repeat(2000)), ("test.jsonl", line)]);
    let recipe = open("sst2", dir.path()).unwrap().recipe();
    assert_eq!(recipe.dev, source(&["train.jsonl"], Take::Draw { count: 1000 }));
    assert_eq!(recipe.test, source(&["test.jsonl"], Take::All));
    assert_eq!(recipe.notes, ["There is no development file: dev is drawn from train.jsonl."]);
}

#[test]
fn mrpc_keeps_its_three_splits() {
    let rows = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\ta\tb\n0\t5\t6\tc\td\n";
    let (train, dev, test) = (("train.tsv", rows), ("dev.tsv", rows), ("msr_paraphrase_test.txt", rows));
    let original = ("msr_paraphrase_train.txt", rows);

    let whole = open("mrpc", dir(&[train, dev, test, original]).path()).unwrap().recipe();
    let all = |part| source(&[part], Take::All);
    assert_eq!((whole.train, whole.dev, whole.test), (all(train.0), all(dev.0), all(test.0)));
    assert!(whole.notes.is_empty());

    let untested = open("mrpc", dir(&[train, dev]).path()).unwrap().recipe();
    assert_eq!((untested.train, untested.test), (source(&[train.0], Take::Rest { cap: None }), all(dev.0)));
    let note =
        "There is no labelled msr_paraphrase_test.txt: dev.tsv stands in as test, and dev is drawn from train.tsv.";
    assert_eq!(untested.notes.last().unwrap(), note);

    // The original training file contains dev.tsv, so dev is drawn from it and dev.tsv is left out.
    let original = open("mrpc", dir(&[original, dev, test]).path()).unwrap().recipe();
    assert_eq!(original.dev, source(&["msr_paraphrase_train.txt"], Take::Draw { count: 1 }));
    assert_eq!(original.test, all(test.0));
}

#[test]
fn the_hubs_files_are_read_in_the_order_of_their_shards() {
    let dir = tempfile::tempdir().unwrap();
    let hub = dir.path().join("glue/mrpc");
    let texts = ["sentence1", "sentence2"];
    write_parquet(hub.join("train-00001-of-00002.parquet"), texts, &[1, 1]);
    write_parquet(hub.join("train-00000-of-00002.parquet"), texts, &[0, 0, 0]);
    write_parquet(hub.join("validation-00000-of-00001.parquet"), texts, &[1]);
    write_parquet(hub.join("test-00000-of-00001.parquet"), texts, &[0]);
    let data = open("mrpc", dir.path()).unwrap();
    let recipe = data.recipe();
    let shards = ["glue/mrpc/train-00000-of-00002.parquet", "glue/mrpc/train-00001-of-00002.parquet"];
    assert_eq!(recipe.train, source(&shards, Take::All));
    let labels: Vec<u32> = read(&*data, &recipe.train).iter().map(|example| example.label).collect();
    assert_eq!(labels, [0, 0, 0, 1, 1]);
    assert_eq!(read(&*data, &recipe.test), [example("sentence1 0", Some("sentence2 0"), 0)]);

    write_parquet(hub.join("test-00000-of-00001.parquet"), texts, &[-1, -1]);
    let recipe = open("mrpc", &hub).unwrap().recipe();
    assert_eq!(recipe.test, source(&["validation-00000-of-00001.parquet"], Take::All));
    assert_eq!(recipe.notes[0], "test-00000-of-00001.parquet has no labels in `label` or `Quality` and is not used.");

    write_parquet(hub.join("train-00000-of-00002.parquet"), texts, &[0, -1]);
    let data = open("mrpc", &hub).unwrap();
    let error = data.examples("train-00000-of-00002.parquet").unwrap().nth(1).unwrap().unwrap_err();
    let expected = "train-00000-of-00002.parquet, row 2: expected a label 0 (not_equivalent), 1 (equivalent), got `-1`";
    assert!(error.0.ends_with(expected), "{error}");
    let unknown = data.examples("train.tsv").err().unwrap();
    assert!(unknown.0.starts_with("no part `train.tsv`: expected one of train-00000-of-00002.parquet, "), "{unknown}");
}

#[test]
fn mnli_is_tested_on_both_halves_of_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, labels: &[i64]| {
        write_parquet(dir.path().join("mnli").join(name), ["premise", "hypothesis"], labels);
    };
    write("train-00000-of-00001.parquet", &[0, 1, 2, 0, 1]);
    write("validation_matched-00000-of-00001.parquet", &[0]);
    write("test_matched-00000-of-00001.parquet", &[-1]);
    let half = open("mnli", dir.path()).unwrap().recipe();
    let note = "There is no validation_mismatched-*-of-*.parquet: mnli/validation_matched-00000-of-00001.parquet alone is \
                the test split.";
    assert_eq!(half.notes.last().unwrap(), note);
    write("validation_mismatched-00000-of-00001.parquet", &[2]);
    let data = open("mnli", dir.path()).unwrap();
    let test = read(&*data, &data.recipe().test);
    assert_eq!(test.iter().map(|example| example.label).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(data.recipe().train.take, Take::Rest { cap: Some(100_000) });
    assert_eq!(data.recipe().notes.len(), 1);
}

#[test]
fn malformed_rows_name_file_and_line() {
    let header = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n";
    let cases: [(&[u8], &str); 4] = [
        (b"1\ta\tb\n", "train.tsv:3: expected 4 columns (index, sentence1, sentence2, label), got 3"),
        (b"1\ta\tb\tneutral\n", "train.tsv:3: expected a label 0 (entailment), 1 (not_entailment), got `neutral`"),
        (b"1\ta\xff\tb\tentailment\n", "train.tsv:3: expected UTF-8"),
        (b"\n1\ta\tb\tentailment\n", "train.tsv:3: expected a row, got a blank line"),
    ];
    for (row, expected) in cases {
        let dir = dir(&[("dev.tsv", header), ("train.tsv", header)]);
        let many = [header.as_bytes(), row, &b"2\ta\tb\tentailment\n".repeat(600)].concat();
        fs::write(dir.path().join("train.tsv"), many).unwrap();
        // A malformed row is an error when rows are counted, a wrong label only when it is read.
        let message = match open("rte", dir.path()) {
            Err(error) => error.0,
            Ok(data) => data.examples("train.tsv").unwrap().find_map(Result::err).unwrap().0,
        };
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_missing_split_says_what_was_looked_for_and_found() {
    let dir = dir(&[("MNLI/dev_matched.tsv", "x"), ("CoLA/train.tsv", "x")]);
    let message = refusal("mnli", dir.path());
    for piece in [
        "task mnli: no training split directly in ",
        "or in a folder MNLI, glue/MNLI there. Looked for:\n  train: train.tsv; dev: dev_matched.tsv or dev_mismatched.tsv\n",
        "train: train-*-of-*.parquet; ",
        "train: train.jsonl; ",
        ": CoLA, MNLI\n",
        "MNLI: dev_matched.tsv",
    ] {
        assert!(message.contains(piece), "{message}");
    }
}

fn counts(task: &str, data: &Path) -> [usize; 3] {
    let data = open(task, data).unwrap();
    let recipe = data.recipe();
    [&recipe.train, &recipe.dev, &recipe.test].map(|split| read(&*data, split).len())
}

#[test]
fn the_real_files_have_the_official_sizes() {
    let Some(glue) = sparta_test_data::find("data/glue") else { return };
    // Train and dev both come from the training file if dev is drawn from it.
    assert_eq!(counts("sst2", &glue), [67_349, 67_349, 872]);
    assert_eq!(counts("cola", &glue), [8_551, 8_551, 1_043]);
    assert_eq!(counts("rte", &glue), [2_490, 2_490, 277]);
    assert_eq!(counts("mrpc", &glue), [3_668, 408, 1_725]);
    for task in ["sst2", "cola", "rte", "mrpc"] {
        assert!(open(task, &glue).unwrap().recipe().notes.is_empty(), "{task}");
    }
}

#[test]
fn real_dev_files_without_a_train_file_are_read_beside_one() {
    let Some(glue) = sparta_test_data::find("data/glue") else { return };
    for (task, file, rows) in
        [("qnli", "QNLI/dev.tsv", 5_463), ("qqp", "QQP/dev.tsv", 78), ("mnli", "MNLI/dev_matched.tsv", 9_815)]
    {
        let refused = refusal(task, &glue);
        assert!(refused.starts_with(&format!("task {task}: no training split directly in ")), "{refused}");
        let dir = dir(&[(file, "")]);
        let (file, train) = (dir.path().join(file), dir.path().join(file).with_file_name("train.tsv"));
        fs::copy(glue.join(file.strip_prefix(dir.path()).unwrap()), &file).unwrap();
        fs::copy(&file, train).unwrap();
        assert_eq!(counts(task, dir.path()), [rows; 3], "{task}");
    }
}

#[test]
fn the_real_zip_and_hub_say_the_same() {
    let Some(glue) = sparta_test_data::find("data/glue") else { return };
    let Some(hub) = sparta_test_data::find("data/hub/glue") else { return };
    let pairs = [
        ("sst2", "SST-2/train.tsv", "sst2/train"),
        ("sst2", "SST-2/dev.tsv", "sst2/validation"),
        ("rte", "RTE/dev.tsv", "rte/validation"),
        ("qqp", "QQP/dev.tsv", "qqp/validation"),
        ("mnli", "MNLI/dev_matched.tsv", "mnli/validation_matched"),
    ];
    for (task, tsv, parquet) in pairs {
        let schema = &tasks::TASKS.iter().find(|known| known.id == task).unwrap().schema;
        let examples = |path: PathBuf, format| {
            let part = sparta_task_files::Part { name: String::new(), path, format };
            part.examples(schema).unwrap().collect::<Result<Vec<Example>, Error>>().unwrap()
        };
        let tsv = examples(glue.join(tsv), sparta_task_files::Format::Tsv);
        let parquet =
            examples(hub.join(format!("{parquet}-00000-of-00001.parquet")), sparta_task_files::Format::Parquet);
        assert_eq!(tsv.len(), parquet.len(), "{task}");
        let different = tsv.iter().zip(&parquet).find(|(tsv, parquet)| tsv != parquet);
        assert_eq!(different, None, "{task}");
    }
    // Only SST-2 has its training split in both.
    for root in [&hub, &hub.join(".."), &hub.join("sst2")] {
        assert_eq!(counts("sst2", root), [67_349, 67_349, 872]);
    }
}
