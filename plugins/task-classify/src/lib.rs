//! Any table of texts or pairs of texts, each with a class, several labels or a number, which are found in the data.

mod dataset;
mod labels;
mod recipe;
#[cfg(test)]
mod tests;

use dataset::Opened;
use sparta_plugin::Error;
use sparta_plugin::options::Options;
use sparta_plugin::task::{Dataset, OpenRequest, Target, Task, TaskInfo, TaskPluginInfo};
use sparta_task_files::{Format, Named, find_tables};

const ID: &str = "classify";

pub struct Classify;

sparta_plugin::export_task!(entry: Classify);

impl Task for Classify {
    fn describe(&self) -> TaskPluginInfo {
        let options = Given::declared();
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

sparta_plugin::options! {
    /// The options as given; empty if they were not.
    struct Given {
        /// Column of the texts [default: text, sentence, content ...]
        text: String = "";
        /// Column of the second texts, for pairs
        pair: String = "";
        /// Column of the labels [default: label, labels, target, class]
        label: String = "";
        /// class, classes (any number of labels per text) or number; auto: by what the labels look like
        target: String = AUTO;
        /// What separates the labels of a text in one field, for example ';'
        label_separator: String = "";
        /// Weights of the classes in training: balanced, so that all count alike, or 'a=2,b=0.5' (others 1)
        class_weights: String = "";
        /// Format of the files: csv, tsv, jsonl, json, parquet, lines or folder [default: by the file's ending]
        format: String = "";
    }
}

/// What the options mean.
struct Settings {
    named: Named,
    format: Option<Format>,
    /// `None`: decided by what the labels look like.
    target: Option<Target>,
    separator: Option<String>,
    weights: Option<String>,
}

impl Settings {
    fn new(options: &Options) -> Result<Settings, Error> {
        let given = Given::read(options)?;
        let target = match given.target.as_str() {
            "" | AUTO => None,
            "class" => Some(Target::Class),
            "classes" => Some(Target::Classes),
            "number" => Some(Target::Number),
            other => {
                return Err(Error(format!("--target: expected auto, class, classes or number, got `{other}`")));
            }
        };
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        let separator = filled(given.label_separator);
        if separator.is_some() && target.is_some_and(|target| target != Target::Classes) {
            return Err(Error(
                "--label-separator is for several labels per text: leave out --target, or set it to classes".into(),
            ));
        }
        Ok(Settings {
            weights: filled(given.class_weights),
            named: Named { text: filled(given.text), pair: filled(given.pair), label: filled(given.label) },
            format: filled(given.format).as_deref().map(Format::named).transpose()?,
            target,
            separator,
        })
    }
}
