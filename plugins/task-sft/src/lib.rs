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

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let data = request.data.as_path();
        let files = if data.is_dir() { SPLITS.map(|names| find(data, names)) } else { [Some(data.into()), None, None] };
        if files[0].is_none() {
            let path = data.display();
            return Err(Error(format!("{path}: expected train.jsonl")));
        }
        Ok(Box::new(Conversations { files }))
    }
}

fn find(directory: &Path, names: &[&str]) -> Option<PathBuf> {
    let names = names.iter().flat_map(|name| ENDINGS.map(|ending| directory.join(format!("{name}.{ending}"))));
    names.into_iter().find(|path| path.exists())
}

/// The files of train, dev and test.
struct Conversations {
    files: [Option<PathBuf>; 3],
}

impl Dataset for Conversations {
    fn recipe(&self) -> Recipe {
        let all = |file: &Option<PathBuf>| Source {
            parts: file.iter().map(|path| path.display().to_string()).collect(),
            take: Take::All,
        };
        let [mut train, mut dev, test] = self.files.each_ref().map(all);
        let mut notes = Vec::new();
        if dev.parts.is_empty() {
            dev = Source { take: Take::Share { from: 1.0 - DEV, to: 1.0 }, ..train.clone() };
            train.take = Take::Share { from: 0.0, to: 1.0 - DEV };
            notes.push("There is no file for dev: its examples are drawn from train by seed.".to_owned());
        }
        Recipe { train, dev, test, notes, task: None }
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        let path = PathBuf::from(part);
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
