//! What a task plugin provides: which files make up a data set, and its examples. No tensor code.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the plugin says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskPluginInfo {
    pub name: String,
    pub version: String,
    pub tasks: Vec<TaskInfo>,
}

/// One task: texts to be classified, or to be learned themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// What `--task` accepts, for example `sst2`.
    pub id: String,
    pub title: String,
    /// Class names in the order of the labels 0, 1, ..., two or more; none where each next token of the texts is learned.
    pub labels: Vec<String>,
    /// Metric ids the host computes: `accuracy`, `f1`, `mcc`; without labels `perplexity`, `log_likelihood`.
    pub metrics: Vec<String>,
    /// The one of `metrics` that early stopping and comparisons look at: the larger the better.
    pub primary: String,
    /// Whether an example is a pair of texts.
    pub pair: bool,
    /// How to put the task to an instruction model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
}

/// A question to an instruction model, whose answer is one of a few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// With `{text}` once, and for pairs `{pair}` once.
    pub template: String,
    /// The word for each label, in their order. Common and short ones: each must be one token of the model.
    pub verbalizers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRequest {
    pub task: String,
    /// The user's `--data` directory.
    pub data: PathBuf,
    /// Which of `train`, `dev` and `test` will be read: files of the others may be missing, and their sources in the
    /// recipe empty. None are named by hosts of earlier versions, and mean all.
    #[serde(default)]
    pub splits: Vec<String>,
}

impl OpenRequest {
    /// Of all splits.
    pub fn new(task: impl Into<String>, data: impl Into<PathBuf>) -> OpenRequest {
        OpenRequest { task: task.into(), data: data.into(), splits: Vec::new() }
    }

    /// Whether a split will be read.
    pub fn wants(&self, split: &str) -> bool {
        self.splits.is_empty() || self.splits.iter().any(|wanted| wanted == split)
    }
}

/// One text or pair of texts, with its label: 0 where the task has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    pub label: u32,
}

/// How the three splits are made of the parts (files) that were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub train: Source,
    pub dev: Source,
    pub test: Source,
    /// Sentences for the plan: what stands in for a file that is not there.
    pub notes: Vec<String>,
}

/// One split: examples of the named parts, in order, and which of them. No example may be in two splits: splits that share
/// a part are one `Draw` and one `Rest` of the same parts. Without parts there is no such split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    pub parts: Vec<String>,
    pub take: Take,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// Every example.
    All,
    /// `count` examples drawn by seed; a fifth of the parts where that would leave less than twice as many, which the plan
    /// says.
    Draw { count: usize },
    /// What `Draw` on the same parts left, at most `cap` of it.
    Rest { cap: Option<usize> },
}

pub type Examples<'a> = Box<dyn Iterator<Item = Result<Example, Error>> + 'a>;

/// An opened data set.
pub trait Dataset: Send {
    fn recipe(&self) -> Recipe;
    /// The examples of one part named by the recipe, in file order, read as they are asked for.
    fn examples(&self, part: &str) -> Result<Examples<'_>, Error>;
}

/// A family of tasks.
pub trait Task: Send + Sync {
    fn describe(&self) -> TaskPluginInfo;
    /// Finds the files of a task by content and name. A missing split is an error that lists what was looked for.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error>;
}
