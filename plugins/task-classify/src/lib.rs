//! Anybody's table: texts or pairs of texts with a class, several labels or a number each, which are found in the data.

mod dataset;
mod labels;
mod recipe;
#[cfg(test)]
mod tests;

use dataset::Opened;
use serde_json::Value;
use sparta_plugin::Error;
use sparta_plugin::method::{OptionInfo, OptionKind, Options};
use sparta_plugin::task::{Dataset, OpenRequest, Target, Task, TaskInfo, TaskPluginInfo};
use sparta_task_files::{Format, Named, find_tables};

const ID: &str = "classify";

pub struct Classify;

sparta_plugin::export_task!(entry: Classify);

impl Task for Classify {
    fn describe(&self) -> TaskPluginInfo {
        let option = |name, help, default: &str| OptionInfo::new(name, help, OptionKind::Text, default);
        let options = vec![
            option("text", "Column of the texts [default: text, sentence, content ...]", ""),
            option("pair", "Column of the second texts, for pairs", ""),
            option("label", "Column of the labels [default: label, labels, target, class]", ""),
            option(
                "target",
                "class, classes (any number of labels a text) or number; auto: what the labels look like",
                AUTO,
            ),
            option("label-separator", "What separates the labels of a text in one field, for example ';'", ""),
            option(
                "class-weights",
                "By how much classes count in training: balanced, so that each counts alike, or 'a=2,b=0.5' (others 1)",
                "",
            ),
            option(
                "format",
                "Format of the files: csv, tsv, jsonl, json, parquet, lines or folder [default: by the file's ending]",
                "",
            ),
        ];
        let tasks = vec![info(Target::Class, vec![], false)];
        TaskPluginInfo { name: ID.into(), version: env!("CARGO_PKG_VERSION").into(), tasks, options }
    }

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let settings = Settings::new(&request.options)?;
        let tables = find_tables(&request.data, settings.format)?;
        let files = recipe::files(tables, request)?;
        Ok(Box::new(Opened::new(files, settings, request)?))
    }
}

/// The task with labels that were found.
fn info(target: Target, labels: Vec<String>, pair: bool) -> TaskInfo {
    let (metrics, primary): (&[&str], _) = match target {
        Target::Classes => (&["f1", "precision", "recall", "exact", "accuracy"], "f1"),
        Target::Number => (&["pearson", "spearman", "mse", "mae"], "pearson"),
        Target::Class | Target::Tokens => (&["accuracy", "f1", "mcc"], "accuracy"),
    };
    TaskInfo {
        id: ID.into(),
        title: "Classify: labels of your own table".into(),
        labels,
        target: Some(target),
        weights: vec![],
        metrics: metrics.iter().map(|id| id.to_string()).collect(),
        primary: primary.into(),
        pair,
        prompt: None,
    }
}

const AUTO: &str = "auto";

/// The options.
struct Settings {
    named: Named,
    format: Option<Format>,
    /// `None`: what the labels look like.
    target: Option<Target>,
    separator: Option<String>,
    weights: Option<String>,
}

impl Settings {
    fn new(options: &Options) -> Result<Settings, Error> {
        let given = |name: &str| {
            let text = options.get(name).and_then(Value::as_str).unwrap_or_default();
            Some(text.to_owned()).filter(|text| !text.is_empty())
        };
        let target = match given("target").as_deref() {
            None | Some(AUTO) => None,
            Some("class") => Some(Target::Class),
            Some("classes") => Some(Target::Classes),
            Some("number") => Some(Target::Number),
            Some(other) => {
                return Err(Error(format!("--target: expected auto, class, classes or number, got `{other}`")));
            }
        };
        let separator = given("label-separator");
        if separator.is_some() && target.is_some_and(|target| target != Target::Classes) {
            return Err(Error(
                "--label-separator is for several labels a text: leave out --target, or make it classes".into(),
            ));
        }
        Ok(Settings {
            weights: given("class-weights"),
            named: Named { text: given("text"), pair: given("pair"), label: given("label") },
            format: given("format").as_deref().map(Format::named).transpose()?,
            target,
            separator,
        })
    }
}
