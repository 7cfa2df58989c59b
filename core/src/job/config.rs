//! The options of a run. Each field is the single definition of an option: its name, range, default, help, and whether
//! a resumed run may change it. The command line is derived from it; configuration files, presets and sweeps use the
//! same names; `config.json` stores the fields; [`RunConfig::check`] applies the same ranges to a configuration from
//! elsewhere.

use super::{Exchange, PrecisionChoice};
use crate::model::Quantize;
use crate::plugin::{LoadedTask, PluginSet, UsedPlugin};
use crate::text::{Instruct, TrainOn};
use crate::train::optimizer::{self, Choice, Group, Hyperparameters};
use crate::train::{MICRO_BATCH_TOKENS, Optimization, Recompute, Schedule};
use crate::{Error, Result, files};
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::{ArgAction, Args, Command, FromArgMatches};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sparta_plugin::task::TaskInfo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Headings of `run --help`.
pub const MODEL_AND_DATA: &str = "Model and data";
pub const METHOD: &str = "Method";
pub const TRAINING: &str = "Training";
pub const DEVICE: &str = "Device";
pub const OUTPUT: &str = "Output";

pub const DEFAULT_METHOD: &str = "sparta";

/// Names given by the user. [`RunConfig`] has what they resolve to.
#[derive(Args, Clone, Debug)]
pub struct Sources {
    /// Model: a directory in the Hugging Face layout, a GGUF file, or a name on the hub, ORG/NAME[@REVISION]
    #[arg(long, value_name = "DIR|NAME", help_heading = MODEL_AND_DATA)]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REV", help_heading = MODEL_AND_DATA)]
    pub revision: Option<String>,
    /// Task, for example sst2; text is next-token prediction on documents
    #[arg(long, value_name = "ID", help_heading = MODEL_AND_DATA)]
    pub task: Option<String>,
    /// Data: a directory with the task's files, or a name on the hub, ORG/NAME[@REVISION]; for tasks classify, sft and
    /// text also one file
    #[arg(long, value_name = "DIR|NAME", help_heading = MODEL_AND_DATA)]
    pub data: Option<PathBuf>,
    /// Wrap each text in the task's prompt and the model's chat template, for instruction models; the head starts from
    /// the vocabulary rows of the answers. Task sft uses the template by default if there is one; false concatenates
    /// the texts of its conversations
    #[arg(long, value_name = "BOOL", help_heading = MODEL_AND_DATA, action = ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true")]
    pub instruct: Option<bool>,
    /// Prompt with {text}, and {pair} for pairs of texts, instead of the task's own; implies --instruct
    #[arg(long, value_name = "TEXT", help_heading = MODEL_AND_DATA)]
    pub prompt: Option<String>,
    /// One word per label, in label order, each a single token, instead of the task's own; implies --instruct
    #[arg(long, value_name = "A,B,...", help_heading = MODEL_AND_DATA, value_delimiter = ',')]
    pub verbalizers: Option<Vec<String>>,
    /// Fine-tuning method: sparta, lora, full, head, or one from a plugin
    #[arg(long, value_name = "NAME", help_heading = METHOD, default_value = DEFAULT_METHOD)]
    pub method: String,
}

impl Sources {
    /// The prompt, if the task is presented as one.
    ///
    /// # Errors
    /// A prompt or verbalizers, but `instruct` is off.
    pub fn instruct(&self) -> Result<Option<Instruct>> {
        let given = self.prompt.is_some() || self.verbalizers.is_some();
        match self.instruct {
            Some(false) if given => {
                Err(Error::Usage("--prompt and --verbalizers are for --instruct, which is set to false".into()))
            }
            on if on.unwrap_or(given) => Ok(Some(Instruct::new(self.prompt.clone(), self.verbalizers.clone()))),
            _ => Ok(None),
        }
    }
}

/// Everything that determines a run; stored with its result.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Directory in the Hugging Face layout.
    #[arg(skip)]
    pub model: PathBuf,
    /// Task id, for example `sst2`.
    #[arg(skip)]
    pub task: String,
    /// The task's data.
    #[arg(skip)]
    pub data: PathBuf,
    /// Method name, for example `sparta`.
    #[arg(skip)]
    pub method: String,
    /// Options of the method as given; checked against what the method declares.
    #[arg(skip)]
    pub method_options: BTreeMap<String, Value>,
    /// Options of the task as given; checked against what its plugin declares.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub task_options: BTreeMap<String, Value>,
    /// What the data determined about the task: labels, pairs or not.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_task: Option<TaskInfo>,
    /// How the task is presented to an instruction model.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruct: Option<Instruct>,
    /// Whether conversations are concatenated without the model's chat template.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_template: bool,
    /// The plugins of the run: its method, task and backend.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<UsedPlugin>,
    /// Plugins that were replaced when the run was resumed.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_plugins: Vec<UsedPlugin>,
    /// The run's earlier lengths, before it was extended.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_lengths: Vec<EarlierLength>,
    /// The run directory.
    #[arg(skip)]
    #[serde(skip)]
    pub out: PathBuf,
    /// Which tokens of prompts and answers to train on: the answers, all, or the last answer of each conversation
    #[arg(long, value_name = "WHAT", help_heading = MODEL_AND_DATA, default_value = "answers", value_parser = one_of(TRAIN_ON))]
    #[serde(default, skip_serializing_if = "is_answers")]
    pub train_on: TrainOn,
    /// Leave out training examples longer than N tokens
    #[arg(long, value_name = "N", help_heading = MODEL_AND_DATA, value_parser = at_least(1))]
    pub max_length: Option<usize>,
    /// Use at most N training examples
    #[arg(long, value_name = "N", help_heading = MODEL_AND_DATA, value_parser = at_least(1))]
    pub max_train: Option<usize>,
    /// Use at most N dev examples
    #[arg(long, value_name = "N", help_heading = MODEL_AND_DATA, value_parser = at_least(1))]
    pub max_dev: Option<usize>,
    /// Use at most N test examples
    #[arg(long, value_name = "N", help_heading = MODEL_AND_DATA, value_parser = at_least(1))]
    pub max_test: Option<usize>,
    /// Standard deviation of a new classification head [default: 0.06 / sqrt(hidden size)]
    #[arg(long, value_name = "X", help_heading = METHOD, value_parser = not_negative)]
    pub head_init_std: Option<f64>,
    /// Start from a new classification head even if the model has one
    #[arg(long, value_name = "BOOL", help_heading = METHOD, action = ArgAction::Set, num_args = 0..=1,
          default_value = "false", default_missing_value = "true")]
    #[serde(default)]
    pub new_head: bool,
    /// Keep changes that are too small for the model's 16-bit weights: a sparse product adds what rounding loses. For
    /// methods that train single elements, such as sparta
    #[arg(long, value_name = "BOOL", help_heading = METHOD, action = ArgAction::Set, num_args = 0..=1,
          default_value = "false", default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
    /// Quantize the model's matrices to blocks of 8 or 4 bits, which are kept on the device. Matrices that a GGUF file
    /// stores in blocks stay as they are
    #[arg(long, value_name = "TYPE", help_heading = MODEL_AND_DATA, value_parser = one_of(Quantize::NAMED))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// Examples per optimizer step
    #[arg(long, value_name = "N", help_heading = TRAINING, default_value = "16", value_parser = at_least(1))]
    pub batch_size: usize,
    /// Tokens per optimizer step, in whole examples, instead of --batch-size
    #[arg(long, value_name = "N", help_heading = TRAINING, value_parser = at_least(1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Peak learning rate [default: the method's]
    #[arg(long, value_name = "X", help_heading = TRAINING, value_parser = positive)]
    pub lr: Option<f64>,
    /// How the learning rate changes after the warm-up
    #[arg(long, value_name = "NAME", help_heading = TRAINING, default_value = "linear", value_parser = one_of(SCHEDULES))]
    pub schedule: Schedule,
    /// Fraction of the steps over which the learning rate rises linearly from 0
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0.06", value_parser = fraction)]
    pub warmup: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0", value_parser = not_negative)]
    pub weight_decay: f64,
    #[command(flatten)]
    #[serde(flatten, skip_serializing_if = "OptimizerOptions::is_default")]
    pub optimizer: OptimizerOptions,
    /// Clip the global gradient norm to X; 0 turns clipping off
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "1", value_parser = not_negative)]
    pub max_grad_norm: Option<f64>,
    /// Dropout of attention probabilities during training
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0", value_parser = below_one)]
    pub dropout: f64,
    /// Seed of all randomness: splits, order, index sets, initial values, dropout
    #[arg(long, value_name = "N", help_heading = TRAINING, default_value = "0")]
    pub seed: u64,
    /// Evaluate on dev every N steps [default: after each epoch]
    #[arg(long, value_name = "N", help_heading = TRAINING, value_parser = at_least(1))]
    pub eval_interval: Option<usize>,
    /// Stop after N evaluations on dev without improvement, and keep the best state
    #[arg(long, value_name = "N", help_heading = TRAINING, value_parser = at_least(1))]
    pub patience: Option<usize>,
    /// Smallest gain in the dev metric that counts as an improvement
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0", value_parser = not_negative)]
    pub min_delta: f64,
    /// Tokens per micro-batch; a larger batch is split and its gradients are summed [default: 4096, or as many as fit]
    #[arg(long, value_name = "N", help_heading = DEVICE, value_parser = at_least(1))]
    pub micro_batch_tokens: Option<usize>,
    /// Split each batch into N micro-batches of about as many tokens, which processes can share [default: as many as there
    /// are processes, unless --micro-batch-tokens is given]
    #[arg(long, value_name = "N", help_heading = DEVICE, value_parser = at_least(1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batches: Option<usize>,
    /// How processes add up their gradients: exact, in the order of the micro-batches, with the same bytes as one
    /// process; fast, in any order
    #[arg(long, value_name = "HOW", help_heading = DEVICE, default_value = "exact", value_parser = one_of(Exchange::ALL))]
    #[serde(default, skip_serializing_if = "Exchange::is_exact")]
    pub exchange: Exchange,
    /// Recompute each layer's activations in the backward pass, which saves memory; auto: only if they would not fit
    #[arg(long, value_name = "WHEN", help_heading = DEVICE, default_value = "auto", value_parser = one_of(RECOMPUTE))]
    pub recompute: Recompute,
    /// Float types of activations and products; auto: bf16 for a 16-bit or quantized model on a device that
    /// multiplies 16-bit numbers in hardware, else f32; tf32: f32 with factors of products rounded to 11 bits, on
    /// NVIDIA cards through CUDA
    #[arg(long, value_name = "TYPE", help_heading = DEVICE, default_value = "auto", value_parser = one_of(PRECISIONS))]
    #[serde(default = "before_there_was_a_choice")]
    pub precision: PrecisionChoice,
    /// Choose a GPU's kernels by rules, without measuring which are fastest
    #[arg(long, value_name = "BOOL", help_heading = DEVICE, action = ArgAction::Set, num_args = 0..=1,
          default_value = "false", default_missing_value = "true")]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_autotune: bool,
    /// The options that a resumed run may change.
    #[command(flatten)]
    #[serde(flatten)]
    pub control: Control,
}

/// An earlier length of a run, which determined the learning rates of its first steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierLength {
    /// Steps done when the run was extended.
    pub until: usize,
    pub total_steps: usize,
}

/// The optimizer's options. Runs stored without them have the defaults.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimizerOptions {
    /// Optimizer
    #[arg(long, value_name = "NAME", help_heading = TRAINING, default_value = optimizer::ALL[0].0,
          value_parser = PossibleValuesParser::new(optimizer::ALL.iter().map(|(name, _)| *name)))]
    pub optimizer: String,
    /// AdamW: decay rate of the first moment
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0.9", value_parser = below_one)]
    pub beta1: f64,
    /// AdamW: decay rate of the second moment
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0.999", value_parser = below_one)]
    pub beta2: f64,
    /// AdamW: term added to the square root of the second moment
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "1e-8", value_parser = positive)]
    pub eps: f64,
    /// SGD: momentum; 0 turns it off
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value = "0.9", value_parser = below_one)]
    pub momentum: f64,
    /// Learning rate factor and weight decay for the trained tensors whose names match, where * stands for any text,
    /// for example 'score.weight:lr=10,decay=0'; the first match wins. May be repeated, or hold several, separated by ;
    #[arg(long, value_name = "PATTERN:lr=X,decay=X", help_heading = TRAINING, value_delimiter = ';')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<Group>,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        OptimizerOptions {
            optimizer: optimizer::ALL[0].0.to_owned(),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.9,
            group: Vec::new(),
        }
    }
}

impl OptimizerOptions {
    fn choice(&self) -> Choice {
        let &OptimizerOptions { beta1, beta2, eps, momentum, .. } = self;
        let [beta1, beta2, eps, momentum] = [beta1, beta2, eps, momentum].map(|x| x as f32);
        Choice { name: self.optimizer.clone(), parameters: Hyperparameters { beta1, beta2, eps, momentum } }
    }

    fn is_default(&self) -> bool {
        *self == OptimizerOptions::default()
    }
}

/// Options that a resumed run may change: how long to train and what to keep, not what a step computes.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Passes over the training data; with --resume, a larger number extends the run
    #[arg(long, value_name = "N", help_heading = TRAINING, default_value = "3", value_parser = at_least(1))]
    pub epochs: usize,
    /// Stop after N optimizer steps, if the epochs have that many; with --resume, a larger number extends the run
    #[arg(long, value_name = "N", help_heading = TRAINING, value_parser = at_least(1))]
    pub max_steps: Option<usize>,
    /// Skip steps whose gradient is not finite, instead of ending the run
    #[arg(long, value_name = "BOOL", help_heading = TRAINING, action = ArgAction::Set, num_args = 0..=1,
          default_value = "false", default_missing_value = "true")]
    pub skip_nonfinite: bool,
    /// Write a checkpoint every N steps, besides those at evaluations and at the end
    #[arg(long, value_name = "N", help_heading = OUTPUT, default_value = "500", value_parser = at_least(1))]
    pub checkpoint_interval: usize,
    /// Keep the N newest checkpoints
    #[arg(long, value_name = "N", help_heading = OUTPUT, default_value = "2", value_parser = at_least(1))]
    pub keep_checkpoints: usize,
    /// Show the trained model's answers to N held-out prompts in the report, for data of prompts and answers; 0 for
    /// none
    #[arg(long, value_name = "N", help_heading = OUTPUT, default_value_t = ANSWERS)]
    #[serde(default = "answers")]
    pub answers: usize,
    /// Show the N test examples that the trained model gets wrong with the highest probability in the report, for tasks
    /// with one label per text; 0 for none
    #[arg(long, value_name = "N", help_heading = OUTPUT, default_value_t = MISTAKES)]
    #[serde(default = "mistakes")]
    pub mistakes: usize,
}

const ANSWERS: usize = 3;
const MISTAKES: usize = 10;

fn answers() -> usize {
    ANSWERS
}

fn mistakes() -> usize {
    MISTAKES
}

fn is_answers(train_on: &TrainOn) -> bool {
    *train_on == TrainOn::Answers
}

fn before_there_was_a_choice() -> PrecisionChoice {
    PrecisionChoice::F32
}

impl RunConfig {
    /// Tokens per micro-batch of a prepared run.
    pub fn micro_batch_tokens(&self) -> usize {
        self.micro_batch_tokens.unwrap_or(MICRO_BATCH_TOKENS)
    }

    /// The plugin of the run's task, and the task as its data determined it.
    ///
    /// # Errors
    /// No plugin has the task.
    pub fn task_info(&self, plugins: &PluginSet) -> Result<(Arc<LoadedTask>, TaskInfo)> {
        let (plugin, described) = plugins.task(&self.task)?;
        Ok((plugin, self.found_task.clone().unwrap_or(described)))
    }

    /// How trained tensors are updated.
    ///
    /// # Errors
    /// An optimizer that does not exist, or a parameter outside of its range.
    pub fn optimization(&self) -> Result<Optimization> {
        Ok(Optimization {
            optimizer: self.optimizer.choice().optimizer()?,
            weight_decay: self.weight_decay as f32,
            groups: self.optimizer.group.clone(),
            max_grad_norm: self.max_grad_norm.filter(|&norm| norm > 0.0).map(|norm| norm as f32),
        })
    }

    /// The configuration of an earlier run, to resume it.
    ///
    /// # Errors
    /// No run directory; a file of another version.
    pub fn of_run(dir: &Path) -> Result<RunConfig> {
        let path = dir.join("config.json");
        if !files::is_file(&path) {
            return Err(Error::Usage(format!("{}: there is no run here: no config.json", dir.display())));
        }
        let text = files::read_text(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
        let config: RunConfig = serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("{}: not the configuration of a run: {e}", path.display())))?;
        Ok(RunConfig { out: dir.to_owned(), ..config })
    }

    /// The configuration of these options by name, and the defaults of all others. What a user names is empty: model, task,
    /// data, method and where to write.
    ///
    /// # Errors
    /// The first option that does not exist, or a value that is out of range.
    pub fn of_options(options: &BTreeMap<String, Value>) -> Result<RunConfig> {
        let command = RunConfig::augment_args(Command::new("run").no_binary_name(true));
        let named = |(name, value): (&String, &Value)| match value {
            Value::Null => vec![],
            Value::Array(items) => items.iter().map(|item| format!("--{name}={}", text_of(item))).collect(),
            value => vec![format!("--{name}={}", text_of(value))],
        };
        let matches = command.try_get_matches_from(options.iter().flat_map(named));
        let read = matches.and_then(|matches| RunConfig::from_arg_matches(&matches));
        read.map_err(|e| Error::Usage(explanation(&e)))
    }

    /// Checks every value against the range of its option, for configurations that did not come from the command line.
    ///
    /// # Errors
    /// The first value that is out of range.
    pub fn check(&self) -> Result<()> {
        let command = RunConfig::augment_args(Command::new("run").no_binary_name(true));
        let values = self.keys()?;
        let of_argument = |arg: &clap::Arg| -> Vec<String> {
            let texts = match values.get(arg.get_id().as_str()) {
                None | Some(Value::Null) => vec![],
                Some(Value::Array(items)) => items.iter().map(text_of).collect(),
                Some(value) => vec![text_of(value)],
            };
            let named = |text: String| Some(format!("--{}={text}", arg.get_long()?));
            texts.into_iter().filter_map(named).collect()
        };
        let arguments: Vec<String> = command.get_arguments().flat_map(of_argument).collect();
        command.try_get_matches_from(arguments).map(drop).map_err(|e| Error::Usage(explanation(&e)))
    }

    /// The plugin libraries of the run in `dir`, if unchanged or if changes are `allowed`; none if there is no run.
    pub fn libraries(dir: &Path, allowed: bool) -> Vec<PathBuf> {
        let Ok(config) = RunConfig::of_run(dir) else { return Vec::new() };
        config.plugins.iter().filter_map(|used| used.library_of_run(dir, allowed).map(Path::to_owned)).collect()
    }

    /// The options that must be equal when the run is resumed, by name. Paths are left out, as files may move and their
    /// content is what counts. Plugins and their options are compared separately.
    ///
    /// # Errors
    /// A configuration that cannot be serialised.
    pub fn fixed(&self) -> Result<BTreeMap<String, Value>> {
        let mut keys = self.keys()?;
        let control = serde_json::to_value(&self.control).map_err(|e| Error::Training(e.to_string()))?;
        let free = control.as_object().into_iter().flat_map(|control| control.keys().map(String::as_str));
        let stated_otherwise =
            ["model", "data", "method_options", "task_options", "plugins", "earlier_plugins", "earlier_lengths"];
        for key in free.chain(stated_otherwise) {
            keys.remove(key);
        }
        Ok(keys)
    }

    fn keys(&self) -> Result<BTreeMap<String, Value>> {
        let value = serde_json::to_value(self).map_err(|e| Error::Training(e.to_string()))?;
        serde_json::from_value(value).map_err(|e| Error::Training(e.to_string()))
    }
}

/// A value as it is written on a command line.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// clap's message without the usage and hints that follow it.
pub fn explanation(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = text.split("\n\nUsage:").next().unwrap_or(text);
    text.split("\n\nFor more information").next().unwrap_or(text).trim().to_owned()
}

/// The values of `--precision`.
pub const PRECISIONS: &[(&str, PrecisionChoice)] = &[
    ("auto", PrecisionChoice::Auto),
    ("f32", PrecisionChoice::F32),
    ("bf16", PrecisionChoice::Bf16),
    ("tf32", PrecisionChoice::Tf32),
];
const SCHEDULES: &[(&str, Schedule)] =
    &[("constant", Schedule::Constant), ("linear", Schedule::Linear), ("cosine", Schedule::Cosine)];
const TRAIN_ON: &[(&str, TrainOn)] = &[("answers", TrainOn::Answers), ("all", TrainOn::All), ("last", TrainOn::Last)];
const RECOMPUTE: &[(&str, Recompute)] = &[("auto", Recompute::Auto), ("on", Recompute::On), ("off", Recompute::Off)];

/// Parses one of a few names.
pub fn one_of<T: Copy + Send + Sync>(choices: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    let value = |name: String| choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    PossibleValuesParser::new(choices.iter().map(|(name, _)| *name))
        .try_map(move |name| value(name).ok_or("not one of the possible values"))
}

/// Parses an integer of at least `min`.
pub fn at_least(min: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(min..)
}

fn number(text: &str, expected: &str, ok: impl Fn(f64) -> bool) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x.is_finite() && ok(x)).ok_or_else(|| format!("expected {expected}"))
}

/// Parses a number above 0.
pub fn positive(text: &str) -> std::result::Result<f64, String> {
    number(text, "a number above 0", |x| x > 0.0)
}

/// Parses a number of at least 0.
pub fn not_negative(text: &str) -> std::result::Result<f64, String> {
    number(text, "a number of at least 0", |x| x >= 0.0)
}

/// Parses a number from 0 to 1.
pub fn fraction(text: &str) -> std::result::Result<f64, String> {
    number(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

/// Parses a number from 0 to below 1.
pub fn below_one(text: &str) -> std::result::Result<f64, String> {
    number(text, "a number from 0 to below 1", |x| (0.0..1.0).contains(&x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn parsed(args: &[&str]) -> RunConfig {
        let command = RunConfig::augment_args(Command::new("run").no_binary_name(true));
        RunConfig::from_arg_matches(&command.get_matches_from(args)).unwrap()
    }

    #[test]
    fn a_configuration_is_checked_against_the_ranges_of_its_options() {
        let good = parsed(&["--lr", "1e-30", "--schedule", "cosine", "--max-grad-norm", "0"]);
        good.check().unwrap();
        let wrong = [
            (RunConfig { batch_size: 0, ..good.clone() }, "--batch-size"),
            (RunConfig { lr: Some(-1.0), ..good.clone() }, "--lr"),
            (RunConfig { dropout: 1.0, ..good.clone() }, "--dropout"),
            (RunConfig { control: Control { epochs: 0, ..good.control.clone() }, ..good.clone() }, "--epochs"),
        ];
        for (config, option) in wrong {
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(option), "{message}");
        }
    }

    #[test]
    fn what_a_resumed_run_may_change_is_not_part_of_its_identity() {
        let (short, long) = (parsed(&["--epochs", "1"]), parsed(&["--epochs", "2", "--skip-nonfinite"]));
        assert_eq!(short.fixed().unwrap(), long.fixed().unwrap());
        assert_ne!(short.fixed().unwrap(), parsed(&["--batch-size", "3"]).fixed().unwrap());
    }

    #[test]
    fn a_stored_configuration_is_read_back() {
        let config = parsed(&["--lr", "0.1", "--max-steps", "7"]);
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"max_steps\":7"), "{text}");
        assert_eq!(serde_json::from_str::<RunConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_run_stored_before_an_option_existed_is_read() {
        let stored = include_str!("../../../tests/readers/seeds/config.json");
        let config: RunConfig = serde_json::from_str(stored).unwrap();
        config.check().unwrap();
        assert_eq!((config.precision, config.control.answers), (PrecisionChoice::F32, ANSWERS));
    }

    #[test]
    fn groups_are_part_of_a_runs_identity() {
        let config = parsed(&["--group", "a:lr=2;b:decay=0", "--group=*norm*:lr=0.5"]);
        config.check().unwrap();
        let groups = ["a:lr=2", "b:lr=1,decay=0", "*norm*:lr=0.5"].map(|group| group.parse().unwrap());
        assert_eq!(config.optimizer.group, groups);
        let plain = parsed(&[]).fixed().unwrap();
        assert!(!plain.contains_key("group") && config.fixed().unwrap().contains_key("group"));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RunConfig>(&text).unwrap(), config);
    }
}
