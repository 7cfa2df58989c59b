//! What a task plugin provides: which files make up a data set, and its examples. No tensor code.

use crate::Error;
use crate::method::{OptionInfo, Options};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a task plugin describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskPluginInfo {
    /// The plugin's name in listings, such as `glue`.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// Its tasks, at least one.
    pub tasks: Vec<TaskInfo>,
    /// Options that all its tasks share, like those of a method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<OptionInfo>,
}

/// One task: texts with labels, or texts to be learned themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// What `--task` accepts, for example `sst2`.
    pub id: String,
    /// One line for listings.
    pub title: String,
    /// Names of the classes or labels in the order 0, 1, ...: at least two classes, or the name of a number. Empty if
    /// each next token of the texts is learned, and in the description of a task that finds its labels in the data.
    pub labels: Vec<String>,
    /// What an example is labelled with. `None` (as from plugins built with earlier versions): a class if there are
    /// labels, else its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The weight of an example of each class in the training loss, in the order of the labels; empty: all alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// Ids of metrics that the host can compute for this target; `sparta_plugin.h` lists them.
    pub metrics: Vec<String>,
    /// The one of `metrics` that early stopping and comparisons use: the larger, the better.
    pub primary: String,
    /// Whether an example is a pair of texts.
    pub pair: bool,
    /// How to ask an instruction model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
}

impl TaskInfo {
    /// What an example is labelled with.
    pub fn target(&self) -> Target {
        let default = if self.labels.is_empty() { Target::Tokens } else { Target::Class };
        self.target.unwrap_or(default)
    }
}

/// What an example is labelled with, and so what is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One of the labels.
    Class,
    /// Any number of the labels.
    Classes,
    /// One number.
    Number,
    /// Nothing: each next token is learned, or those that it marks.
    Tokens,
}

/// A question to an instruction model, whose answer is one of a few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The question, with `{text}` once and, for pairs, `{pair}` once.
    pub template: String,
    /// A word for each label, in their order. Each must be one token of the model, so choose short, common words.
    pub verbalizers: Vec<String>,
}

/// Which data to open, and for what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The [`TaskInfo::id`] of the task.
    pub task: String,
    /// The user's `--data` directory.
    pub data: PathBuf,
    /// Which of `train`, `dev` and `test` will be read: files of the others may be missing and their sources in the
    /// recipe empty. An empty list, as from hosts of earlier versions, means all.
    #[serde(default)]
    pub splits: Vec<String>,
    /// Checked values of all options of the plugin.
    #[serde(default, skip_serializing_if = "Options::is_empty")]
    pub options: Options,
    /// The task as it was when a model was trained on it: its labels must be kept, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<TaskInfo>,
    /// Whether `data` is not what the model was trained on: a single file is then the requested split, not to be
    /// divided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_data: bool,
}

impl OpenRequest {
    /// A request for all splits, without options.
    pub fn new(task: impl Into<String>, data: impl Into<PathBuf>) -> OpenRequest {
        OpenRequest {
            task: task.into(),
            data: data.into(),
            splits: Vec::new(),
            options: Options::new(),
            trained: None,
            other_data: false,
        }
    }

    /// Whether the host will read a split.
    pub fn wants(&self, split: &str) -> bool {
        self.splits.is_empty() || self.splits.iter().any(|wanted| wanted == split)
    }
}

/// One text or pair of texts, with only what the task's target needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The text; empty if there are messages or segments instead.
    #[serde(default)]
    pub text: String,
    /// The second text, only in a task of pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// Its class; 0 if the target is not a class.
    #[serde(default)]
    pub label: u32,
    /// Its labels for [`Target::Classes`], ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<u32>,
    /// Its number for [`Target::Number`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<f64>,
    /// For [`Target::Tokens`], instead of a text: the turns of a conversation, which the host formats with the chat
    /// template of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// For [`Target::Tokens`], instead of a text: texts that are concatenated, with the model's end-of-text token
    /// after the last. Given along with messages, they are used if the model has no template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
}

/// A turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another that the model's template knows.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Whether an answer is only read, not learned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub context: bool,
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The piece, verbatim.
    pub text: String,
    /// Whether its tokens are learned rather than only read.
    pub trained: bool,
}

impl Example {
    /// Whether it is a text or a pair, not messages or segments.
    pub fn is_plain(&self) -> bool {
        self.messages.is_empty() && self.segments.is_empty()
    }

    /// All texts of the example.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let messages = self.messages.iter().flat_map(|message| [message.role.as_str(), &message.content]);
        let segments = self.segments.iter().map(|segment| segment.text.as_str());
        [self.text.as_str()].into_iter().chain(self.pair.as_deref()).chain(messages).chain(segments)
    }
}

/// How the three splits are made from the parts (files) that were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What is trained on.
    pub train: Source,
    /// What training is monitored with.
    pub dev: Source,
    /// What the result is measured with.
    pub test: Source,
    /// Sentences for the plan, such as what stands in for a missing file.
    pub notes: Vec<String>,
    /// The task as found in the data, if the description leaves something open: its labels, pairs or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskInfo>,
}

/// One split: which examples of the named parts, in order. No example may be in two splits: splits that share
/// a part must be one `Draw` and one `Rest` of the same parts, or `Share`s that do not overlap. Without parts, there is
/// no such split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Names of parts, as [`Dataset::examples`] takes them.
    pub parts: Vec<String>,
    /// Which of their examples.
    pub take: Take,
}

/// Which examples of its parts a split takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// Every example.
    All,
    /// `count` examples drawn by the seed, or a fifth of the parts if `count` would leave fewer than twice as many;
    /// the plan says which.
    Draw {
        /// How many.
        count: usize,
    },
    /// What `Draw` left of the same parts, at most `cap` examples.
    Rest {
        /// The most examples to take; `None`: all.
        cap: Option<usize>,
    },
    /// The examples between two shares of the parts, 0 to 1, in an order drawn by the seed: each label gets about
    /// its share, and equal texts stay together. Dev and test may turn out empty.
    Share {
        /// Where the share begins.
        from: f64,
        /// Where it ends.
        to: f64,
    },
}

/// Examples, or why there are no more.
pub type Examples<'a> = Box<dyn Iterator<Item = Result<Example, Error>> + 'a>;

/// An opened data set.
pub trait Dataset: Send {
    /// How the splits are made; the same on every call.
    fn recipe(&self) -> Recipe;
    /// The examples of one part named by the recipe, in file order, read on demand.
    ///
    /// Errors: no such part; a file that cannot be read, now or as the iterator's last item.
    fn examples(&self, part: &str) -> Result<Examples<'_>, Error>;
}

/// A family of tasks.
pub trait Task: Send + Sync {
    /// Its tasks and options; the same on every call.
    fn describe(&self) -> TaskPluginInfo;
    /// Finds a task's files by content and name. A missing split is an error that lists what was looked for.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error>;
}
