//! Every layout: on small files, and on the real ones if they are available.

use super::*;
use sparta_plugin::task::Example;
use sparta_task_files::testing::{self, Column, parquet};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn open(data: &Path) -> Result<Box<dyn Dataset>, Error> {
    Imdb.open(&OpenRequest::new("imdb", data))
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

fn source(part: &str, take: Take) -> Source {
    Source { parts: vec![part.to_owned()], take }
}

#[test]
fn the_archive_is_read_by_class_and_name() {
    let dir = dir(&[
        ("aclImdb/train/pos/0_9.txt", "good"),
        ("aclImdb/train/neg/1_1.txt", "bad <br />"),
        ("aclImdb/train/neg/0_2.txt", "worse"),
        ("aclImdb/train/unsup/0_0.txt", "unknown"),
        ("aclImdb/test/pos/0_9.txt", "fine"),
        ("aclImdb/test/neg/0_2.txt", "dull"),
    ]);
    let data = open(dir.path()).unwrap();
    let recipe = data.recipe();
    let texts =
        |split| read(&*data, split).into_iter().map(|example| (example.text, example.label)).collect::<Vec<_>>();
    let expected = [("worse", 0), ("bad <br />", 0), ("good", 1)].map(|(text, label)| (text.to_owned(), label));
    assert_eq!(texts(&recipe.train), expected);
    assert_eq!(recipe.train, source("aclImdb/train", Take::All));
    assert_eq!(recipe.dev, source("aclImdb/test", Take::Draw { count: 1 }));
    assert_eq!(recipe.test, source("aclImdb/test", Take::Rest { cap: None }));
    assert_eq!(recipe.notes, ["aclImdb/test: 2 examples are too few to draw 5000; 1 are drawn instead."]);
    assert_eq!(open(&dir.path().join("aclImdb")).unwrap().recipe().train, source("train", Take::All));

    fs::remove_dir_all(dir.path().join("aclImdb/test/neg")).unwrap();
    let message = open(dir.path()).err().unwrap().0;
    assert!(message.contains("neg: expected a folder of .txt files (one of neg and pos), got: "), "{message}");
}

#[test]
fn parquet_goes_before_the_archive_and_its_test_split_is_cut() {
    let dir = dir(&[("plain_text/train/pos/0.txt", "x"), ("plain_text/test/pos/0.txt", "x")]);
    for split in ["train", "test", "unsupervised"] {
        let text = Column::texts((0..10_000).map(|i| format!("{split} {i}")));
        let label = Column::integers((0..10_000).map(|i| i / 5000));
        let path = dir.path().join(format!("plain_text/{split}-00000-of-00001.parquet"));
        fs::write(path, parquet(&[("text", text), ("label", label)], Default::default())).unwrap();
    }
    let data = open(dir.path()).unwrap();
    let (train, test) = ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet");
    let (dev, rest) = (source(test, Take::Draw { count: DEV }), source(test, Take::Rest { cap: None }));
    let expected = Recipe { train: source(train, Take::All), dev, test: rest, notes: Vec::new(), task: None };
    assert_eq!(data.recipe(), expected);
    let last = read(&*data, &expected.test).pop().unwrap();
    assert_eq!(last, Example { text: "test 9999".to_owned(), label: 1, ..Example::default() });
}

#[test]
fn jsonl_is_used_as_it_is_or_cut() {
    let line = "{\"text\":\"a\",\"label\":\"pos\"}\n";
    let (train, dev, test) = (("train.jsonl", line), ("dev.jsonl", line), ("test.jsonl", line));
    let data = dir(&[train, dev, test]);
    let recipe = open(data.path()).unwrap().recipe();
    let all = |part| source(part, Take::All);
    let (expected, notes) = ((all("train.jsonl"), all("dev.jsonl"), all("test.jsonl")), recipe.notes);
    assert_eq!((recipe.train, recipe.dev, recipe.test), expected);
    assert!(notes.is_empty());

    let many = line.repeat(10_000);
    let data = dir(&[train, ("dev.jsonl", &many), ("test.jsonl", "{\"text\":\"a\"}\n")]);
    let recipe = open(data.path()).unwrap().recipe();
    assert_eq!(recipe.dev, source("dev.jsonl", Take::Draw { count: 5000 }));
    assert_eq!(recipe.test, source("dev.jsonl", Take::Rest { cap: None }));
    let notes = [
        "test.jsonl has no labels in `label` and is not used.",
        "There is no labelled test file: dev.jsonl is divided into dev and test.",
    ];
    assert_eq!(recipe.notes, notes);
}

#[test]
fn missing_files_and_unknown_tasks_are_errors() {
    let data = dir(&[("imdb/test.jsonl", "{\"text\":\"a\",\"label\":1}\n")]);
    let message = open(data.path()).err().unwrap().0;
    assert!(message.starts_with("task imdb: no training split directly in "), "{message}");
    assert!(message.contains("train: train-*-of-*.parquet; "), "{message}");
    assert!(message.contains("\n  train: train; test: test\n"), "{message}");
    assert!(message.ends_with("imdb: test.jsonl"), "{message}");
    let unknown = Imdb.open(&OpenRequest::new("sst2", data.path())).err().unwrap();
    assert_eq!(unknown.0, "no task `sst2` in imdb: expected imdb");
}

#[test]
fn the_real_parquet_files_are_whole() {
    let Some(hub) = sparta_test_data::find("data/hub") else { return };
    for root in [&hub, &hub.join("imdb"), &hub.join("imdb/plain_text")] {
        assert_eq!(open(root).unwrap().recipe().dev.take, Take::Draw { count: 5000 });
    }
    let data = open(&hub).unwrap();
    let recipe = data.recipe();
    for split in [&recipe.train, &recipe.test] {
        let examples = read(&*data, split);
        let positive = examples.iter().filter(|example| example.label == 1).count();
        assert_eq!((examples.len(), positive), (25_000, 12_500));
    }
}

#[test]
fn the_real_archive_has_400_files() {
    let Some(archive) = sparta_test_data::find("data/aclImdb-sample") else { return };
    let data = open(&archive).unwrap();
    let recipe = data.recipe();
    assert_eq!(recipe.dev.take, Take::Draw { count: 40 });
    for split in [&recipe.train, &recipe.test] {
        let examples = read(&*data, split);
        let labels: Vec<u32> = examples.iter().map(|example| example.label).collect();
        assert_eq!(labels, [[0; 100], [1; 100]].concat());
        assert!(examples.iter().all(|example| !example.text.is_empty()));
    }
}
