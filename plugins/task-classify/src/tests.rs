use super::*;
use serde_json::json;
use sparta_plugin::task::{Example, Take};
use sparta_task_files::testing;
use tempfile::TempDir;

fn tree(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    testing::write(dir.path(), files);
    dir
}

fn request(dir: &TempDir, file: &str, options: &[(&str, &str)]) -> OpenRequest {
    let options = options.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    OpenRequest { options, ..OpenRequest::new(ID, dir.path().join(file)) }
}

fn open(files: &[(&str, &str)], file: &str, options: &[(&str, &str)]) -> Result<Read, String> {
    let dir = tree(files);
    read(&request(&dir, file, options))
}

/// The task, the notes, and the examples of each split's parts.
struct Read {
    task: TaskInfo,
    notes: String,
    takes: [Take; 3],
    examples: [Vec<Example>; 3],
}

fn read(request: &OpenRequest) -> Result<Read, String> {
    let dataset = Classify.open(request).map_err(|e| e.0)?;
    let recipe = dataset.recipe();
    let [train, dev, test] = [&recipe.train, &recipe.dev, &recipe.test].map(|source| {
        let examples = source.parts.iter().map(|part| dataset.examples(part)?.collect::<Result<Vec<_>, _>>());
        Ok::<_, Error>(examples.collect::<Result<Vec<_>, _>>()?.concat())
    });
    let of = |examples: Result<Vec<Example>, Error>| examples.map_err(|e| e.0);
    Ok(Read {
        examples: [of(train)?, of(dev)?, of(test)?],
        takes: [recipe.train.take, recipe.dev.take, recipe.test.take],
        task: recipe.task.unwrap(),
        notes: recipe.notes.join("\n"),
    })
}

fn example(text: &str, label: u32) -> Example {
    Example { text: text.into(), label, ..Example::default() }
}

#[test]
fn one_table_of_texts_and_classes() {
    let csv = "id,Text,target\n1, a ,spam\n2,b, ham\n3,c,eggs\n";
    let read = open(&[("my.csv", csv)], "my.csv", &[]).unwrap();
    assert_eq!(read.task.labels, ["eggs", "ham", "spam"]);
    assert_eq!((read.task.target(), read.task.pair, &*read.task.primary), (Target::Class, false, "accuracy"));
    assert_eq!(read.examples[0], [example(" a ", 2), example("b", 1), example("c", 0)]);
    let share = |from, to| Take::Share { from, to };
    assert_eq!(read.takes, [share(0.0, 0.8), share(0.8, 0.9), share(0.9, 1.0)]);
    assert!(
        read.notes.contains("my.csv is split by the seed") && read.notes.contains("column `target`"),
        "{}",
        read.notes
    );
}

#[test]
fn numbers_are_classes_in_their_order_or_targets() {
    let stars = open(&[("r.jsonl", "{\"text\":\"a\",\"label\":10}\n{\"text\":\"b\",\"label\":2.0}\n")], "r.jsonl", &[])
        .unwrap();
    assert_eq!(stars.task.labels, ["2", "10"]);
    assert_eq!(stars.examples[0], [example("a", 1), example("b", 0)]);
    let rows = "text\tscore\na\t1\nb\t2.5\n";
    let score = open(&[("s.tsv", rows)], "s.tsv", &[("label", "score")]).unwrap();
    assert_eq!((score.task.target(), &score.task.labels[..]), (Target::Number, &["score".to_owned()][..]));
    assert_eq!(score.examples[0].iter().map(|e| e.number).collect::<Vec<_>>(), [Some(1.0), Some(2.5)]);
    let number = [("label", "n"), ("target", "number")];
    let whole = open(&[("s.csv", "text,n\na,1\nb,2\n")], "s.csv", &number).unwrap();
    assert_eq!(whole.task.target(), Target::Number);
    let wrong = open(&[("s.csv", "text,n\na,1\nb,x\n")], "s.csv", &number).err().unwrap();
    assert!(wrong.contains("s.csv:3: expected a number in `n`, got `x`"), "{wrong}");
}

#[test]
fn several_labels_come_as_lists_or_with_a_separator() {
    let json =
        "[{\"text\":\"a\",\"labels\":[\"x\",\"y\"]},{\"text\":\"b\",\"labels\":[]},{\"text\":\"c\",\"labels\":\"y\"}]";
    let lists = open(&[("m.json", json)], "m.json", &[]).unwrap();
    assert_eq!((lists.task.target(), &*lists.task.primary), (Target::Classes, "f1"));
    let labels = |read: &Read| read.examples[0].iter().map(|e| e.labels.clone()).collect::<Vec<_>>();
    assert_eq!(labels(&lists), [vec![0, 1], vec![], vec![1]]);
    let csv = "text,label\na,y; x\nb,\nc,y;y\n";
    let separated = open(&[("m.csv", csv)], "m.csv", &[("label-separator", ";")]).unwrap();
    assert_eq!(labels(&separated), labels(&lists));
    let wrong = open(&[("m.csv", csv)], "m.csv", &[("label-separator", ";"), ("target", "class")]).err().unwrap();
    assert!(wrong.contains("--label-separator"), "{wrong}");
}

/// `balanced` agrees with scikit-learn's `compute_class_weight`.
#[test]
fn classes_may_have_weights() {
    let csv = "text,label\na,x\nb,x\nc,x\nd,y\ne,z\nf,z\n";
    let weights =
        |given: &str| Ok::<_, String>(open(&[("w.csv", csv)], "w.csv", &[("class-weights", given)])?.task.weights);
    assert_eq!(weights("balanced").unwrap(), [6.0 / 9.0, 2.0, 1.0]);
    assert_eq!(weights("y=3, x=0.5").unwrap(), [0.5, 3.0, 1.0]);
    assert!(weights("").unwrap().is_empty());
    for wrong in ["y", "y=0", "u=1", "y=nan"] {
        let error = weights(wrong).unwrap_err();
        assert!(error.contains(&format!("labels of x, y, z, got `{wrong}`")), "{error}");
    }
    let number = [("target", "number"), ("class-weights", "balanced")];
    let error = open(&[("n.csv", "text,label\na,1\nb,2\n")], "n.csv", &number).err().unwrap();
    assert!(error.contains("one class per text"), "{error}");
}

#[test]
fn files_of_splits_are_used_as_they_are() {
    let rows = |label: &str| format!("premise,hypothesis,label\np,h,{label}\nq,i,yes\n");
    let (train, dev, bare) = (rows("no"), rows("yes"), "premise,hypothesis\np,h\n");
    let files = [("train.csv", &*train), ("dev.csv", &*dev), ("test.csv", bare)];
    let read = open(&files, "", &[]).unwrap();
    assert!(read.task.pair && read.takes == [Take::All; 3]);
    assert_eq!(read.examples.each_ref().map(Vec::len), [2, 2, 0]);
    assert!(read.notes.contains("test.csv has no labels and is not used"), "{}", read.notes);
    let minus = rows("-1").replace("yes", "-1");
    let read = open(&[("train.csv", &train), ("test.csv", &minus)], "", &[]).unwrap();
    assert_eq!(read.takes[2], Take::Share { from: 0.9, to: 1.0 });
    let read = open(&[("train.csv", &train), ("test.csv", &dev)], "", &[]).unwrap();
    assert_eq!(read.takes, [Take::Share { from: 0.0, to: 0.9 }, Take::Share { from: 0.9, to: 1.0 }, Take::All]);
    let folders = [("pos/1.txt", "good"), ("neg/1.txt", "bad"), ("neg/2.txt", "worse")];
    let read = open(&folders, "", &[]).unwrap();
    assert_eq!(read.examples[0], [example("bad", 0), example("worse", 0), example("good", 1)]);
}

#[test]
fn labels_of_a_trained_model_are_kept() {
    let dir = tree(&[("other.csv", "text,label\na,1\nb,good\n")]);
    let labels = ["good", "bad"].map(str::to_owned).to_vec();
    let trained = Some(info(Target::Class, labels, false));
    let request =
        OpenRequest { trained, other_data: true, splits: vec!["test".into()], ..request(&dir, "other.csv", &[]) };
    let found = read(&request).unwrap();
    assert_eq!((found.takes[2], found.examples.each_ref().map(Vec::len)), (Take::All, [0, 0, 2]));
    assert_eq!(found.examples[2], [example("a", 1), example("b", 0)]);
    let dir = tree(&[("other.csv", "text,label\na,ugly\n")]);
    let error = read(&OpenRequest { data: dir.path().join("other.csv"), ..request }).err().unwrap();
    assert!(error.contains("other.csv:2: expected one of the labels good, bad, got `ugly`"), "{error}");
}

#[test]
fn unusable_tables_are_refused_with_what_was_found() {
    let numbered: String = (0..30).map(|i| format!("t{i},l{i}\n")).collect();
    let numbered = format!("text,label\n{numbered}");
    for (content, options, expected) in [
        ("a,b\n1,2\n", &[][..], "my.csv: expected a column of texts"),
        ("text,x\n1,2\n", &[], "expected a column label, labels, target or class, or one named by --label, got none"),
        ("text,x\n1,2\n", &[("label", "y")], "expected a column `y`, named by --label, got none"),
        ("text,label\na,\nb,\n", &[], "expected labels in the column `label`, got none"),
        ("text,label\na,\nb,x\nc,y\n", &[], "my.csv:2: expected a label in `label`, got none"),
        ("text,label\na,x\nb,x\n", &[], "expected two labels or more in `label`, got only `x`"),
        (&numbered, &[], "has 30 different labels in 30 rows"),
        ("text,label\n", &[], "my.csv: expected rows, got none"),
        ("text,label\na,x\n", &[("target", "rank")], "--target: expected auto, class, classes or number"),
        ("text,label\na,x\n", &[("format", "xls")], "expected one of csv, tsv"),
    ] {
        let error = open(&[("my.csv", content)], "my.csv", options).err().unwrap();
        assert!(error.contains(expected), "{error}");
    }
    let lists = "{\"text\":\"a\",\"label\":[\"x\",\"y\"]}\n{\"text\":\"b\",\"label\":[\"y\"]}\n";
    let error = open(&[("m.jsonl", lists)], "m.jsonl", &[("target", "class")]).err().unwrap();
    assert!(error.contains("m.jsonl:1: expected one label in `label`, got 2; see --target"), "{error}");
}
