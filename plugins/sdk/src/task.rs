//! What a task plugin provides: which files make up a data set, and its examples. No tensor code.

use crate::Error;
use crate::method::{OptionInfo, Options};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the plugin says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskPluginInfo {
    /// Of the plugin, for listings: `glue`.
    pub name: String,
    /// Of the plugin.
    pub version: String,
    /// Its tasks, one or more.
    pub tasks: Vec<TaskInfo>,
    /// Options of all its tasks, like those of a method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<OptionInfo>,
}

/// One task: texts to be labelled, or to be learned themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// What `--task` accepts, for example `sst2`.
    pub id: String,
    /// For people, one line.
    pub title: String,
    /// Names of the classes or labels in the order 0, 1, ...; two classes or more, or the name of a number. None where each
    /// next token of the texts is learned, and in the description of a task whose labels are found in its data.
    pub labels: Vec<String>,
    /// What an example is labelled with. `None`, as from plugins of earlier versions: a class where there are labels, else
    /// its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// By how much an example of each class counts in the loss of training, in the order of the labels; none: all alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// Ids of metrics that the host computes for this target, see `sparta_plugin.h`.
    pub metrics: Vec<String>,
    /// The one of `metrics` that early stopping and comparisons look at: the larger the better.
    pub primary: String,
    /// Whether an example is a pair of texts.
    pub pair: bool,
    /// How to put the task to an instruction model.
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
    /// A number.
    Number,
    /// Nothing: each next token is learned, or those that it marks.
    Tokens,
}

/// A question to an instruction model, whose answer is one of a few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// With `{text}` once, and for pairs `{pair}` once.
    pub template: String,
    /// The word for each label, in their order. Common and short ones: each must be one token of the model.
    pub verbalizers: Vec<String>,
}

/// Which data is to be opened, and for what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The [`TaskInfo::id`] that is wanted.
    pub task: String,
    /// The user's `--data` directory.
    pub data: PathBuf,
    /// Which of `train`, `dev` and `test` will be read: files of the others may be missing, and their sources in the
    /// recipe empty. None are named by hosts of earlier versions, and mean all.
    #[serde(default)]
    pub splits: Vec<String>,
    /// Checked values of every option of the plugin.
    #[serde(default, skip_serializing_if = "Options::is_empty")]
    pub options: Options,
    /// What the task was found to be when a model was trained on it: its labels must be kept, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<TaskInfo>,
    /// `data` is other data than a model was trained on: a single file is the wanted split, whole, and not to be cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_data: bool,
}

impl OpenRequest {
    /// Of all splits, without options.
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

    /// Whether a split will be read.
    pub fn wants(&self, split: &str) -> bool {
        self.splits.is_empty() || self.splits.iter().any(|wanted| wanted == split)
    }
}

/// One text or pair of texts with what the task's target asks for, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Empty where there are messages or segments instead.
    #[serde(default)]
    pub text: String,
    /// The second text, in a task of pairs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// Its class; 0 where the target is another.
    #[serde(default)]
    pub label: u32,
    /// For [`Target::Classes`]: its labels, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<u32>,
    /// For [`Target::Number`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<f64>,
    /// For [`Target::Tokens`], in place of a text: the turns of a conversation, which the host writes with the chat template
    /// of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// For [`Target::Tokens`], in place of a text: texts that are laid one after the other, with the end-of-text token of
    /// the model behind the last; beside messages they count where the model has no template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
}

/// A turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another that the model's template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// An answer that is read, and not learned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub context: bool,
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The piece, as it is.
    pub text: String,
    /// Whether its tokens are learned, or only read.
    pub trained: bool,
}

impl Example {
    /// Whether it is a text, or a pair of them.
    pub fn is_plain(&self) -> bool {
        self.messages.is_empty() && self.segments.is_empty()
    }

    /// All its texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let messages = self.messages.iter().flat_map(|message| [message.role.as_str(), &message.content]);
        let segments = self.segments.iter().map(|segment| segment.text.as_str());
        [self.text.as_str()].into_iter().chain(self.pair.as_deref()).chain(messages).chain(segments)
    }
}

/// How the three splits are made of the parts (files) that were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What is trained on.
    pub train: Source,
    /// What training is watched with.
    pub dev: Source,
    /// What the result is measured with.
    pub test: Source,
    /// Sentences for the plan: what stands in for a file that is not there.
    pub notes: Vec<String>,
    /// What the opened data turned out to be, in place of the task's description: labels that were found, pairs or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskInfo>,
}

/// One split: examples of the named parts, in order, and which of them. No example may be in two splits: splits that share
/// a part are one `Draw` and one `Rest` of the same parts, or `Share`s that do not overlap. Without parts there is no such
/// split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Names of parts, as [`Dataset::examples`] takes them.
    pub parts: Vec<String>,
    /// Which of their examples.
    pub take: Take,
}

/// Which examples of parts a split has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// Every example.
    All,
    /// `count` examples drawn by seed; a fifth of the parts where that would leave less than twice as many, which the plan
    /// says.
    Draw {
        /// How many.
        count: usize,
    },
    /// What `Draw` on the same parts left, at most `cap` of it.
    Rest {
        /// The most to take; `None`: all.
        cap: Option<usize>,
    },
    /// The examples from one share of the parts to another, 0 to 1, in an order that is drawn by seed: each label has about
    /// its share, and equal texts stay together. Dev and test may come out empty.
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
    /// How the splits are made; the same whenever it is asked for.
    fn recipe(&self) -> Recipe;
    /// The examples of one part named by the recipe, in file order, read as they are asked for.
    ///
    /// Errors: no such part; a file that cannot be read, now or as the iterator's last item.
    fn examples(&self, part: &str) -> Result<Examples<'_>, Error>;
}

/// A family of tasks.
pub trait Task: Send + Sync {
    /// Its tasks and options; the same whenever it is asked for.
    fn describe(&self) -> TaskPluginInfo;
    /// Finds the files of a task by content and name. A missing split is an error that lists what was looked for.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error>;
}
