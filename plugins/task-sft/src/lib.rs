//! Supervised fine-tuning on prompts and answers, conversations and texts; the answers are learned.

mod form;

use form::{Form, KEYS};
use sparta_plugin::Error;
use sparta_plugin::task::{
    Dataset, Examples, OpenRequest, Recipe, Source, Take, Target, Task, TaskInfo, TaskPluginInfo,
};
use sparta_task_files::{Format, Part, Reading, Table, find_tables, names};

/// If there is no dev file, this share of the training examples is dev.
const DEV: f64 = 0.1;

pub struct Sft;

sparta_plugin::options! {
    struct Settings {
        /// Format of the files: jsonl, json, parquet, csv, tsv or lines [default: by the file's ending]
        format: String = "";
    }
}

sparta_plugin::export_task!(entry: Sft);

impl Task for Sft {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "sft".into(),
            title: "Prompts and answers: each next token of the answers".into(),
            labels: vec![],
            target: Some(Target::Tokens),
            weights: vec![],
            metrics: ["perplexity", "log_likelihood"].map(str::to_owned).to_vec(),
            primary: "log_likelihood".into(),
            pair: false,
            prompt: None,
        };
        TaskPluginInfo {
            name: "sft".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            tasks: vec![task],
            options: Settings::declared(),
        }
    }

    /// `data` is one file, or a directory with files called train and optionally dev and test. Without dev, a
    /// share of train is.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let Settings { format } = Settings::read(&request.options)?;
        let format = Some(format.as_str()).filter(|name| !name.is_empty());
        let tables = find_tables(&request.data, format.map(Format::named).transpose()?)?;
        let [train, dev, test] = tables.splits(request);
        if train.is_empty() && request.wants("train") {
            let (data, there) = (request.data.display(), [names(&dev), names(&test)].concat().join(", "));
            return Err(Error(format!("{data}: expected a file called train, got only {there}")));
        }
        let all = |parts: &[Part]| Source { parts: names(parts), take: Take::All };
        let share = |from, to| Source { parts: names(&train), take: Take::Share { from, to } };
        let (mut recipe, test) =
            (Recipe { train: all(&train), dev: all(&dev), test: all(&test), notes: vec![], task: None }, test);
        if dev.is_empty() && !train.is_empty() && !request.other_data {
            recipe.notes.push(format!(
                "There is no dev file: {:.0} % of {} are drawn for it by the seed; equal examples stay together.",
                100.0 * DEV,
                names(&train).join(", ")
            ));
            (recipe.train, recipe.dev) = (share(0.0, 1.0 - DEV), share(1.0 - DEV, 1.0));
        }
        Ok(Box::new(Conversations { parts: [train, dev, test].concat(), recipe }))
    }
}

/// Files of rows in any of the forms.
struct Conversations {
    parts: Vec<Part>,
    recipe: Recipe,
}

impl Dataset for Conversations {
    fn recipe(&self) -> Recipe {
        self.recipe.clone()
    }

    /// The first row of a file decides the form of all its rows.
    fn examples(&self, name: &str) -> Result<Examples<'_>, Error> {
        let part = self.parts.iter().find(|part| part.name == name);
        let part = part.ok_or_else(|| Error(format!("no part `{name}` in this data")))?;
        let wanted = |name: &str| KEYS.contains(&name);
        let table = Table::open(&part.path, part.format, Reading { wanted: Some(&wanted), ..Reading::default() })?;
        let columns = table.columns;
        let (mut form, mut failed) = (None, false);
        let examples = table.records.map(move |record| {
            let record = record?;
            let place = || part.format.place(&part.path.display().to_string(), record.number);
            let wrong = |what: String| Error(format!("{}: {what}", place()));
            let form = match form {
                Some(form) => form,
                None => {
                    let keys: Vec<&str> = match &columns {
                        Some(columns) => columns.iter().map(String::as_str).collect(),
                        None => record.values.keys().map(String::as_str).collect(),
                    };
                    *form.insert(Form::of(&record.values, &keys).map_err(wrong)?)
                }
            };
            form.example(&record.values).map_err(wrong)
        });
        Ok(Box::new(examples.take_while(move |example| !std::mem::replace(&mut failed, example.is_err()))))
    }
}

#[cfg(test)]
mod tests;
