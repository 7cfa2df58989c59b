//! Prompts and answers, conversations and texts, of which a model learns the answers.

mod form;

use form::{Form, Row};
use sparta_plugin::Error;
use sparta_plugin::task::{
    Dataset, Example, Examples, OpenRequest, Recipe, Source, Take, Target, Task, TaskInfo, TaskPluginInfo,
};
use sparta_task_files::Lines;
use std::path::{Path, PathBuf};

/// Names of the files of each split without their endings; the first that is there is taken.
const SPLITS: [&[&str]; 3] = [&["train"], &["dev", "validation", "valid"], &["test"]];
const ENDINGS: [&str; 1] = ["jsonl"];

/// Where nothing is held out, this share of the training examples is dev.
const DEV: f64 = 0.1;

pub struct Sft;

sparta_plugin::export_task!(entry: Sft);

impl Task for Sft {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "sft".into(),
            title: "Prompts and answers: each next token of the answers".into(),
            labels: vec![],
            target: Some(Target::Tokens),
            metrics: ["perplexity", "log_likelihood"].map(str::to_owned).to_vec(),
            primary: "log_likelihood".into(),
            pair: false,
            prompt: None,
        };
        TaskPluginInfo {
            name: "sft".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            tasks: vec![task],
            options: vec![],
        }
    }

    /// `data` is a directory with `train.jsonl` and optionally `dev.jsonl` and `test.jsonl`, or one such file. Where there
    /// is no dev, a share of train is.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let data = request.data.as_path();
        let file = data.file_name().filter(|_| !data.is_dir()).map(|name| name.to_string_lossy().into_owned());
        let directory = if file.is_some() { data.parent().unwrap_or(Path::new("")) } else { data }.to_owned();
        let is_file = file.is_some();
        let [train, dev, test] = match file {
            None => SPLITS.map(|names| find(data, names)),
            file => [file, None, None],
        };
        let dataset = |recipe| Ok(Box::new(Conversations { directory, recipe }) as Box<dyn Dataset>);
        if let (true, true, [split]) = (is_file, request.other_data, &request.splits[..]) {
            let whole = |name: &str| all(train.clone().filter(|_| name == split));
            let [train, dev, test] = ["train", "dev", "test"].map(whole);
            return dataset(Recipe { train, dev, test, notes: vec![], task: None });
        }
        if train.is_none() && (request.wants("train") || request.wants("dev") && dev.is_none()) {
            let path = data.display();
            return Err(Error(format!("{path}: expected train.jsonl in this directory, or a file; check --data")));
        }
        let test = all(test);
        let recipe = match (all(train), dev) {
            (train, Some(dev)) => Recipe { train, dev: all(Some(dev)), test, notes: vec![], task: None },
            (train, None) => Recipe {
                dev: Source { take: Take::Share { from: 1.0 - DEV, to: 1.0 }, ..train.clone() },
                train: Source { take: Take::Share { from: 0.0, to: 1.0 - DEV }, ..train },
                test,
                notes: vec!["There is no file for dev: its examples are drawn from those of train.".to_owned()],
                task: None,
            },
        };
        dataset(recipe)
    }
}

/// All of a file, if it is there.
fn all(file: Option<String>) -> Source {
    Source { parts: file.into_iter().collect(), take: Take::All }
}

fn find(directory: &Path, names: &[&str]) -> Option<String> {
    let names = names.iter().flat_map(|name| ENDINGS.map(|ending| format!("{name}.{ending}")));
    names.into_iter().find(|name| directory.join(name).exists())
}

/// Files of rows in any form. What is drawn depends on their names, not on where they are.
struct Conversations {
    directory: PathBuf,
    recipe: Recipe,
}

impl Dataset for Conversations {
    fn recipe(&self) -> Recipe {
        self.recipe.clone()
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        let path = self.directory.join(part);
        let mut lines = Lines::open(&path)?;
        let mut form: Option<Form> = None;
        let mut next = move || -> Result<Option<Example>, Error> {
            let Some((number, line)) = lines.next_filled()? else { return Ok(None) };
            let wrong = |what: String| Error(format!("{}:{number}: {what}", path.display()));
            let row: Row = serde_json::from_str(&line).map_err(|e| wrong(format!("expected a JSON object: {e}")))?;
            let own = match form {
                Some(form) => form,
                None => *form.insert(Form::of(&row).map_err(wrong)?),
            };
            own.example(&row).map_err(wrong).map(Some)
        };
        Ok(Box::new(std::iter::from_fn(move || next().transpose())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn texts(dataset: &dyn Dataset, source: &Source) -> Result<Vec<String>, Error> {
        let examples = dataset.examples(&source.parts[0])?;
        examples.map(|example| example.map(|example| example.segments[0].text.clone())).collect()
    }

    #[test]
    fn dev_is_a_file_or_a_share_of_train() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
        write("train.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        let recipe = Sft.open(&OpenRequest::new("sft", home.path())).unwrap().recipe();
        assert_eq!(recipe.train.take, Take::Share { from: 0.0, to: 0.9 });
        assert_eq!((recipe.dev.take, &recipe.dev.parts), (Take::Share { from: 0.9, to: 1.0 }, &recipe.train.parts));
        assert!(recipe.test.parts.is_empty() && recipe.notes[0].contains("no file for dev"), "{recipe:?}");
        write("validation.jsonl", "{\"text\": \"c\"}\n");
        let dataset = Sft.open(&OpenRequest::new("sft", home.path())).unwrap();
        let recipe = dataset.recipe();
        assert_eq!((recipe.train.take, recipe.dev.take), (Take::All, Take::All));
        assert_eq!(texts(&*dataset, &recipe.train).unwrap(), ["a", "b"]);
        assert_eq!(texts(&*dataset, &recipe.dev).unwrap(), ["c"]);
    }

    #[test]
    fn another_file_is_the_wanted_split() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("more.jsonl");
        fs::write(&file, "{\"text\": \"a\"}\n").unwrap();
        let request = OpenRequest { splits: vec!["test".into()], other_data: true, ..OpenRequest::new("sft", file) };
        let recipe = Sft.open(&request).unwrap().recipe();
        assert_eq!((recipe.test.parts, recipe.test.take), (vec!["more.jsonl".to_owned()], Take::All));
        assert!(recipe.train.parts.is_empty() && recipe.dev.parts.is_empty());
    }

    #[test]
    fn the_first_row_decides_for_all() {
        let home = tempfile::tempdir().unwrap();
        assert!(Sft.open(&OpenRequest::new("sft", home.path())).err().unwrap().0.contains("expected train.jsonl"));
        let file = home.path().join("train.jsonl");
        fs::write(&file, "{\"text\": \"a\"}\n{\"prompt\": \"b\", \"completion\": \"c\"}\n").unwrap();
        let dataset = Sft.open(&OpenRequest::new("sft", home.path())).unwrap();
        let error = texts(&*dataset, &dataset.recipe().train).unwrap_err();
        assert!(error.0.contains("train.jsonl:2: expected `text`, as the rows before have it"), "{error}");
    }
}
