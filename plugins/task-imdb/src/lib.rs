//! IMDB's film reviews. The splits are those of Table 9 of the SpaRTA paper.

#[cfg(test)]
mod tests;

use sparta_plugin::Error;
use sparta_plugin::task::{Dataset, OpenRequest, Prompt, Recipe, Source, Take, Task, TaskInfo, TaskPluginInfo};
use sparta_task_files::{FileSet, Format, Found, Layout, Schema, Search, draw, find, names};

/// How many development examples are drawn from the test split.
const DEV: usize = 5000;

const SCHEMA: Schema = Schema {
    texts: &[("text", None)],
    label: &["label"],
    // Also the names of the folders in the original archive.
    classes: &["neg", "pos"],
    headerless: None,
    wrapped_rows: false,
};

const PLACES: &[&[&str]] =
    &[&[], &["imdb"], &["plain_text"], &["imdb", "plain_text"], &["aclImdb"], &["imdb", "aclImdb"]];

const LAYOUTS: &[Layout] = &[
    Layout {
        format: Format::Parquet,
        train: &["train-*-of-*.parquet"],
        dev: &[&["validation-*-of-*.parquet"]],
        test: &["test-*-of-*.parquet"],
    },
    Layout { format: Format::TextFolders, train: &["train"], dev: &[], test: &["test"] },
    Layout {
        format: Format::Jsonl,
        train: &["train.jsonl"],
        dev: &[&["dev.jsonl", "validation.jsonl"]],
        test: &["test.jsonl"],
    },
];

pub struct Imdb;

sparta_plugin::export_task!(entry: Imdb);

impl Task for Imdb {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "imdb".to_owned(),
            title: "IMDB: is a film review positive".to_owned(),
            labels: SCHEMA.classes.iter().map(|&class| class.to_owned()).collect(),
            metrics: ["accuracy", "f1", "mcc"].map(str::to_owned).to_vec(),
            primary: "accuracy".to_owned(),
            target: None,
            weights: vec![],
            pair: false,
            prompt: Some(Prompt {
                template: "Is this film review positive? Answer Yes or No.\n\n{text}".to_owned(),
                verbalizers: ["No", "Yes"].map(str::to_owned).to_vec(),
            }),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        TaskPluginInfo { name: "imdb".to_owned(), version, tasks: vec![task], options: vec![] }
    }

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        if request.task != "imdb" {
            return Err(Error(format!("no task `{}` in imdb: expected imdb", request.task)));
        }
        let found = find(&Search { request, schema: &SCHEMA, places: PLACES, layouts: LAYOUTS })?;
        Ok(Box::new(FileSet { schema: SCHEMA, parts: found.parts(), recipe: recipe(&found)? }))
    }
}

/// The test split is divided into dev and test, unless both exist.
fn recipe(found: &Found) -> Result<Recipe, Error> {
    let source = |parts: &[_], take| Source { parts: names(parts), take };
    let train = source(&found.train, Take::All);
    let mut notes = found.notes.clone();
    if !found.dev.is_empty() && !found.test.is_empty() {
        let (dev, test) = (source(&found.dev, Take::All), source(&found.test, Take::All));
        return Ok(Recipe { train, dev, test, notes, task: None });
    }
    let held_out = if found.test.is_empty() { &found.dev } else { &found.test };
    if found.test.is_empty() {
        notes.push(format!(
            "There is no labelled test file: {} is divided into dev and test.",
            names(held_out).join(", ")
        ));
    }
    let drawn = draw(held_out, DEV, &SCHEMA, &mut notes)?;
    let (dev, test) = (source(held_out, drawn), source(held_out, Take::Rest { cap: None }));
    Ok(Recipe { train, dev, test, notes, task: None })
}
