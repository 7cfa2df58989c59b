//! Documents without labels, of which a model learns each next token: files of lines or JSONL.

use serde_json::{Map, Value};
use sparta_plugin::Error;
use sparta_plugin::task::{
    Dataset, Example, Examples, OpenRequest, Recipe, Source, Take, Task, TaskInfo, TaskPluginInfo,
};
use sparta_task_files::Lines;
use std::path::{Path, PathBuf};

/// Names of the files of each split without their endings; the first that is there is taken.
const SPLITS: [&[&str]; 3] = [&["train"], &["dev", "validation"], &["test"]];
const ENDINGS: [&str; 2] = ["txt", "jsonl"];

pub struct Text;

sparta_plugin::export_task!(entry: Text);

impl Task for Text {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "text".into(),
            title: "Text: each next token of documents".into(),
            labels: vec![],
            metrics: ["perplexity", "log_likelihood"].map(str::to_owned).to_vec(),
            primary: "log_likelihood".into(),
            target: None,
            weights: vec![],
            pair: false,
            prompt: None,
        };
        TaskPluginInfo {
            name: "text".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            tasks: vec![task],
            options: vec![],
        }
    }

    /// `data` is a directory with `train.txt`, and optionally `dev.txt` and `test.txt`, one document a line, or the same
    /// as `.jsonl` with the key `text`; or one such file, which is all for training.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let data = request.data.as_path();
        let files = if data.is_dir() { SPLITS.map(|names| find(data, names)) } else { [Some(data.into()), None, None] };
        if files[0].is_none() {
            let path = data.display();
            return Err(Error(format!(
                "{path}: expected train.txt or train.jsonl in this directory, or a file of text"
            )));
        }
        Ok(Box::new(Documents { files }))
    }
}

fn find(directory: &Path, names: &[&str]) -> Option<PathBuf> {
    let names = names.iter().flat_map(|name| ENDINGS.map(|ending| directory.join(format!("{name}.{ending}"))));
    names.into_iter().find(|path| path.exists())
}

/// The files of train, dev and test.
struct Documents {
    files: [Option<PathBuf>; 3],
}

impl Dataset for Documents {
    fn recipe(&self) -> Recipe {
        let source = |file: &Option<PathBuf>| Source {
            parts: file.iter().map(|path| path.display().to_string()).collect(),
            take: Take::All,
        };
        let [train, dev, test] = self.files.each_ref().map(source);
        let none =
            dev.parts.is_empty().then(|| "There is no dev.txt beside train.txt: nothing is held out.".to_owned());
        Recipe { train, dev, test, notes: none.into_iter().collect(), task: None }
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        let path = PathBuf::from(part);
        let mut lines = Lines::open(&path)?;
        let jsonl = path.extension().is_some_and(|ending| ending == "jsonl");
        let mut next = move || -> Result<Option<Example>, Error> {
            while let Some((number, line)) = lines.next_line()? {
                if line.trim().is_empty() {
                    continue;
                }
                let text = if jsonl { text_of(&line) } else { Ok(line) };
                let text = text.map_err(|what| Error(format!("{}:{number}: {what}", path.display())))?;
                return Ok(Some(Example { text, ..Example::default() }));
            }
            Ok(None)
        };
        Ok(Box::new(std::iter::from_fn(move || next().transpose())))
    }
}

fn text_of(line: &str) -> Result<String, String> {
    let object: Map<String, Value> = serde_json::from_str(line).map_err(|e| format!("expected a JSON object: {e}"))?;
    match object.get("text") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err("expected a text for the key `text`".into()),
        None => Err(format!("expected the key `text`, got {}", object.keys().cloned().collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(data: &Path) -> Result<Box<dyn Dataset>, Error> {
        Text.open(&OpenRequest::new("text", data))
    }

    fn texts(dataset: &dyn Dataset, source: &Source) -> Result<Vec<String>, Error> {
        let examples = dataset.examples(&source.parts[0])?;
        examples.map(|example| example.map(|example| example.text)).collect()
    }

    #[test]
    fn documents_are_lines_or_objects() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
        write("train.txt", "One.\n\n  two \n");
        write("validation.jsonl", "{\"text\": \"a\\nb\", \"id\": 1}\n");
        let dataset = open(home.path()).unwrap();
        let recipe = dataset.recipe();
        assert_eq!(texts(&*dataset, &recipe.train).unwrap(), ["One.", "  two "]);
        assert_eq!(texts(&*dataset, &recipe.dev).unwrap(), ["a\nb"]);
        assert!(recipe.test.parts.is_empty() && recipe.notes.is_empty());

        let file = open(&home.path().join("train.txt")).unwrap().recipe();
        assert!(file.dev.parts.is_empty() && file.notes[0].contains("no dev.txt"), "{file:?}");
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let home = tempfile::tempdir().unwrap();
        assert!(open(home.path()).err().unwrap().0.contains("expected train.txt or train.jsonl"));
        std::fs::write(home.path().join("train.jsonl"), "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n").unwrap();
        let dataset = open(home.path()).unwrap();
        let error = texts(&*dataset, &dataset.recipe().train).unwrap_err();
        assert!(error.0.ends_with("train.jsonl:2: expected the key `text`, got txt"), "{error}");
        assert!(dataset.examples("/no/such/file").is_err());
    }
}
