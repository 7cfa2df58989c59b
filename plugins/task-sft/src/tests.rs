use super::*;
use sparta_plugin::task::Example;
use std::fs;
use std::path::Path;

const ROW: &str = "{\"text\": \"a\"}\n";

fn open(data: &Path) -> Result<Box<dyn Dataset>, Error> {
    Sft.open(&OpenRequest::new("sft", data))
}

fn examples(dataset: &dyn Dataset, source: &Source) -> Result<Vec<Example>, Error> {
    dataset.examples(&source.parts[0])?.collect()
}

fn texts(examples: &[Example]) -> Vec<&str> {
    examples.iter().map(|example| example.segments[0].text.as_str()).collect()
}

#[test]
fn dev_is_a_file_or_a_share_of_train() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    write("train.jsonl", &format!("{ROW}{{\"text\": \"b\"}}\n"));
    write("test.jsonl", ROW);
    let recipe = open(home.path()).unwrap().recipe();
    assert_eq!(recipe.train.take, Take::Share { from: 0.0, to: 0.9 });
    assert_eq!((recipe.dev.take, &recipe.dev.parts), (Take::Share { from: 0.9, to: 1.0 }, &recipe.train.parts));
    assert!(recipe.test.parts == ["test.jsonl"] && recipe.notes[0].contains("10 % of train.jsonl"), "{recipe:?}");
    write("validation.json", "[{\"text\": \"c\"},\n {\"text\": \"d\"}]");
    let dataset = open(home.path()).unwrap();
    let recipe = dataset.recipe();
    assert_eq!((recipe.train.take, recipe.dev.take), (Take::All, Take::All));
    assert_eq!(texts(&examples(&*dataset, &recipe.train).unwrap()), ["a", "b"]);
    assert_eq!(texts(&examples(&*dataset, &recipe.dev).unwrap()), ["c", "d"]);
}

#[test]
fn other_data_in_one_file_is_the_wanted_split() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("more.jsonl");
    fs::write(&file, ROW).unwrap();
    let single = open(&file).unwrap().recipe();
    assert_eq!((single.train.parts, single.dev.parts), (vec!["more.jsonl".into()], vec!["more.jsonl".into()]));
    let request = OpenRequest { splits: vec!["test".into()], other_data: true, ..OpenRequest::new("sft", file) };
    let recipe = Sft.open(&request).unwrap().recipe();
    assert_eq!((recipe.test.parts, recipe.test.take), (vec!["more.jsonl".to_owned()], Take::All));
    assert!(recipe.train.parts.is_empty() && recipe.dev.parts.is_empty());
}

#[test]
fn tables_of_prompts_and_answers_are_read_in_any_format() {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.csv", "prompt,completion\n\"one, two\",three\n"),
        ("b.tsv", "prompt\tcompletion\none, two\tthree\n"),
        ("c.json", "{\"prompt\": \"one, two\",\n\"completion\": \"three\"}"),
    ] {
        let file = home.path().join(name);
        fs::write(&file, text).unwrap();
        let dataset = open(&file).unwrap();
        let found = examples(&*dataset, &dataset.recipe().train).unwrap();
        let turns: Vec<&str> = found[0].messages.iter().map(|turn| turn.content.as_str()).collect();
        assert_eq!((turns, found.len()), (vec!["one, two", "three"], 1), "{name}");
    }
}

#[test]
fn the_first_row_decides_for_all() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("train.jsonl");
    fs::write(&file, format!("{ROW}{{\"prompt\": \"b\", \"completion\": \"c\"}}\n{ROW}")).unwrap();
    let dataset = open(home.path()).unwrap();
    let found: Vec<_> = dataset.examples("train.jsonl").unwrap().collect();
    let error = found[1].as_ref().unwrap_err();
    assert!(error.0.contains("train.jsonl:2: expected `text`, as in the rows before"), "{error}");
    assert_eq!(found.len(), 2, "it ends with the first error");
}

#[test]
fn what_is_missing_is_named() {
    let home = tempfile::tempdir().unwrap();
    assert!(open(home.path()).is_err());
    fs::write(home.path().join("dev.jsonl"), ROW).unwrap();
    let error = open(home.path()).err().unwrap();
    assert!(error.0.contains("expected a file called train, got only dev.jsonl"), "{error}");
    let eval = OpenRequest { splits: vec!["dev".into()], ..OpenRequest::new("sft", home.path()) };
    assert_eq!(Sft.open(&eval).unwrap().recipe().dev.parts, ["dev.jsonl"]);
}
