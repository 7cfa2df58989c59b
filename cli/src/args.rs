//! The command line. Every option is defined here once: its name, type, range, default and help; `--config` files have the
//! same names as keys.

use crate::adapter::AdapterCommand;
use crate::merge::MergeAdaptersArgs;
use crate::plugin_check::CheckArgs;
use crate::rank::RankArgs;
use crate::report::ReportArgs;
use crate::sweep::SweepArgs;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use sparta_core::job::PrecisionChoice;
use sparta_core::run::InspectTask;
use sparta_core::train::optimizer::{self, Choice, Hyperparameters};
use sparta_core::train::{Recompute, Schedule};
use sparta_graph::DType;
use std::path::PathBuf;

/// Fine-tune decoder language models for classification on any GPU, or without one
#[derive(Parser)]
#[command(name = "sparta-cli", version, max_term_width = 120, args_override_self = true)]
pub struct Cli {
    /// Load plugins from this library or directory first; may be repeated
    #[arg(long, global = true, value_name = "PATH")]
    pub plugin: Vec<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Fine-tune a model and measure it; with no --model and no --data, a small model on film and product reviews
    Run {
        #[command(flatten)]
        args: RunArgs,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Print what `run` would do with the same options: model, trained parameters, memory, device, steps; without --data
    /// the memory alone, from the model's config.json
    Plan(RunArgs),
    /// Try many settings, and compare the best of each method on each task
    Sweep(SweepArgs),
    /// Measure the result of a run on a data set
    Eval(EvalArgs),
    /// Classify texts with the result of a run
    Predict(PredictArgs),
    /// Merge, export, describe and compare what runs have learned
    Adapter {
        #[command(subcommand)]
        what: AdapterCommand,
    },
    /// Combine adapters of one base model into one that answers for all their tasks
    MergeAdapters(MergeAdaptersArgs),
    /// Numerical ranks of the changes that training made to a model's weight matrices
    Rank(RankArgs),
    /// Write report.html of a run, or of several side by side
    Report(ReportArgs),
    /// List the plugins: what was found where, with versions and errors
    Plugins(ListArgs),
    /// Check a plugin before publishing it
    Plugin {
        #[command(subcommand)]
        what: PluginCommand,
    },
    /// List the devices and mark the one that `--device auto` picks
    Devices(ListArgs),
    /// List the presets: the hyper-parameters of the paper's tables, each with its source
    Presets(PresetsArgs),
    /// Look inside
    Inspect {
        #[command(subcommand)]
        what: Inspect,
    },
    /// Pre-train a causal language model from scratch on lines of text
    Pretrain(PretrainArgs),
    /// Print a completion script for a shell
    Completions { shell: Shell },
}

#[derive(Subcommand)]
pub enum PluginCommand {
    /// Run the conformance and golden suites on a backend library, each test in a process of its own; of a method or a
    /// task, check that it loads, describes itself and has well-formed options. Exit code 1 when something fails
    Check(CheckArgs),
}

#[derive(Subcommand)]
pub enum Inspect {
    /// Logits, loss, hidden states and gradients of one batch, to compare with any other implementation
    Forward(ForwardArgs),
}

#[derive(Args)]
pub struct RunArgs {
    /// Read options from a TOML file with the same names; options of the command line win
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Fill what is not given with the options of a preset, for example paper/imdb/gemma-2b/sparta-0.5; see `presets`
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Model: a directory in the Hugging Face layout, or its name on the hub, ORG/NAME[@REVISION]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Task, for example sst2
    #[arg(long, value_name = "ID")]
    pub task: Option<String>,
    /// Data: a directory with the task's TSV, parquet, JSONL or folders, or a name on the hub, ORG/NAME[@REVISION]
    #[arg(long, value_name = "DIR|NAME")]
    pub data: Option<PathBuf>,
    /// Fine-tuning method: sparta, lora, full, head or a plugin's
    #[arg(long, value_name = "NAME", default_value = DEFAULT_METHOD)]
    pub method: String,
    /// Passes over the training data; with --resume more than before make the run longer [default: 3]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub epochs: Option<usize>,
    /// End after N optimizer steps, if --epochs has so many; may grow with --resume, too
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_steps: Option<usize>,
    /// Examples per optimizer step
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least(1))]
    pub batch_size: usize,
    /// Peak learning rate [default: the method's]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub lr: Option<f64>,
    /// Learning rate after the warm-up
    #[arg(long, value_name = "NAME", default_value = "linear", value_parser = one_of(SCHEDULES))]
    pub schedule: Schedule,
    /// Share of the steps in which the learning rate rises from 0
    #[arg(long, value_name = "X", default_value = "0.06", value_parser = share)]
    pub warmup: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", default_value = "0", value_parser = not_negative)]
    pub weight_decay: f64,
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    /// Clip the norm of all gradients to X; 0 does not clip
    #[arg(long, value_name = "X", default_value = "1", value_parser = not_negative)]
    pub max_grad_norm: f64,
    /// Dropout of attention probabilities in training
    #[arg(long, value_name = "X", default_value = "0", value_parser = below_one)]
    pub dropout: f64,
    /// Seed of everything random: splits, order, index sets, initial values, dropout
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Evaluate on dev every N steps [default: at the end of each epoch]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub eval_interval: Option<usize>,
    /// Stop after N evaluations on dev without improvement
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub patience: Option<usize>,
    /// What counts as an improvement of the dev metric
    #[arg(long, value_name = "X", default_value = "0", value_parser = not_negative)]
    pub min_delta: f64,
    /// Leave out training examples of more than N tokens
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_length: Option<usize>,
    /// Use at most N training examples
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_train: Option<usize>,
    /// Use at most N dev examples
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_dev: Option<usize>,
    /// Use at most N test examples
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_test: Option<usize>,
    /// Standard deviation of a new classification head [default: 0.06 / sqrt(hidden size)]
    #[arg(long, value_name = "X", value_parser = not_negative)]
    pub head_init_std: Option<f64>,
    /// Put the task to an instruction model: its prompt in the chat template, the head begins as the answers' tokens
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub instruct: Option<bool>,
    /// Prompt with {text}, and {pair} for pairs of texts, in place of the task's; implies --instruct
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A word for each label, in their order, each one token, in place of the task's; implies --instruct
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    pub verbalizers: Option<Vec<String>>,
    /// Tokens per micro-batch; larger batches are split and their gradients summed
    #[arg(long, value_name = "N", default_value = "4096", value_parser = at_least(1))]
    pub micro_batch_tokens: usize,
    /// Compute the activations of a layer again in the backward pass, for less memory; auto: where they would not fit
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = one_of(RECOMPUTE))]
    pub recompute: Recompute,
    /// Float types of activations and products; auto: bf16 for a 16-bit model on a device that multiplies such numbers
    /// in hardware, else f32
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = one_of(PRECISIONS))]
    pub precision: PrecisionChoice,
    /// Save the state of the training every N steps, besides at evaluations and at the end
    #[arg(long, value_name = "N", default_value = "500", value_parser = at_least(1))]
    pub checkpoint_interval: usize,
    /// Keep the N newest checkpoints
    #[arg(long, value_name = "N", default_value = "2", value_parser = at_least(1))]
    pub keep_checkpoints: usize,
    /// Leave out steps whose gradient is not finite, instead of ending the run
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value = "false",
          default_missing_value = "true")]
    pub skip_nonfinite: bool,
    /// Directory for the result [default: runs/TASK-METHOD-N, N the first that is free]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in this directory from its newest checkpoint, with its options; it may become longer
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Who looks on while a run goes on.
#[derive(Args)]
pub struct WatchArgs {
    /// Show curves, speed and memory on the whole terminal while the run goes on
    #[arg(long)]
    pub tui: bool,
    /// Write TensorBoard event files into the run directory too
    #[arg(long)]
    pub tensorboard: bool,
    /// Before the run, print what each kind of operation takes in a step of the first batch, against what the device
    /// can do at best, and write the step's timeline for chrome://tracing to FILE.json
    #[arg(long, value_name = "FILE.json")]
    pub profile: Option<PathBuf>,
    /// End cleanly, as after Ctrl-C, when standard input closes; for programs that start runs
    #[arg(long, hide = true)]
    pub until_eof: bool,
}

pub const DEFAULT_METHOD: &str = "sparta";

#[derive(Args)]
pub struct DeviceArgs {
    /// auto, cpu, wgpu, wgpu:N, cuda, cuda:N, or a part of a device's name
    #[arg(long, value_name = "D", default_value = "auto")]
    pub device: String,
    /// Print one JSON object as the last line on stdout, and text for people on stderr
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct EvalArgs {
    /// Run directory, adapter directory of any format, or a full classifier
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Head of several tasks' adapters [default: all, one after the other]
    #[arg(long, value_name = "NAME")]
    pub head: Option<String>,
    /// Another task than the run's, with the same labels
    #[arg(long, value_name = "ID")]
    pub task: Option<String>,
    /// Other data than the run's
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// train, dev or test
    #[arg(long, value_name = "NAME", default_value = "test")]
    pub split: String,
    /// Use at most N examples
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_examples: Option<usize>,
    /// Float types of activations and products [default: those of the run, where there is one, else f32]
    #[arg(long, value_name = "TYPE", value_parser = one_of(PRECISIONS))]
    pub precision: Option<PrecisionChoice>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Args)]
pub struct PredictArgs {
    /// Run directory, adapter directory of any format, or a full classifier
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Texts, one a line, or JSONL with the key `text` and for pairs `pair`; stdin without FILE
    #[arg(value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Answer of one head only, where there are several
    #[arg(long, value_name = "NAME")]
    pub head: Option<String>,
    /// Float types of activations and products [default: those of the run, where there is one, else f32]
    #[arg(long, value_name = "TYPE", value_parser = one_of(PRECISIONS))]
    pub precision: Option<PrecisionChoice>,
    /// auto, cpu, wgpu, wgpu:N, cuda, cuda:N, or a part of a device's name
    #[arg(long, value_name = "D", default_value = "auto")]
    pub device: String,
    /// Print one JSON object a text
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ForwardArgs {
    /// Model directory in the Hugging Face layout
    #[arg(long, value_name = "DIR|NAME")]
    pub model: PathBuf,
    /// safetensors with `input_ids` [B, T], and optionally `attention_mask` [B, T], `labels` [B] or `lm_labels` [B, T]
    #[arg(long, value_name = "FILE.safetensors")]
    pub batch: PathBuf,
    /// Classification or causal language modelling
    #[arg(long, value_name = "NAME", default_value = "cls", value_parser = one_of(FORWARD_TASKS))]
    pub task: InspectTask,
    /// Also the gradient of every parameter
    #[arg(long)]
    pub grads: bool,
    /// Float types of activations and products
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = one_of(PRECISIONS))]
    pub precision: PrecisionChoice,
    /// Where `logits`, `loss`, `last_hidden_state` and `grad.<name>` go
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// The optimizer and its parameters.
#[derive(Args)]
pub struct OptimizerArgs {
    /// What updates the trained values
    #[arg(long, value_name = "NAME", default_value = optimizer::ALL[0].0, value_parser = optimizers())]
    pub optimizer: String,
    /// AdamW: decay of the mean of gradients
    #[arg(long, value_name = "X", default_value = "0.9")]
    pub beta1: f32,
    /// AdamW: decay of the mean of squared gradients
    #[arg(long, value_name = "X", default_value = "0.999")]
    pub beta2: f32,
    /// AdamW: what is added to the root of the mean of squares
    #[arg(long, value_name = "X", default_value = "1e-8")]
    pub eps: f32,
    /// SGD: decay of the sum of gradients; 0 keeps none
    #[arg(long, value_name = "X", default_value = "0.9")]
    pub momentum: f32,
}

fn optimizers() -> PossibleValuesParser {
    PossibleValuesParser::new(optimizer::ALL.iter().map(|(name, _)| *name))
}

impl OptimizerArgs {
    pub fn choice(self) -> Choice {
        let OptimizerArgs { optimizer: name, beta1, beta2, eps, momentum } = self;
        Choice { name, parameters: Hyperparameters { beta1, beta2, eps, momentum } }
    }
}

#[derive(Args)]
pub struct PretrainArgs {
    /// Directory with config.json and the tokenizer
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Text, one document a line
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Directory for the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Passes over the text
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least(1))]
    pub epochs: usize,
    /// Tokens per step; documents are packed whole
    #[arg(long, value_name = "N", default_value = "2048", value_parser = at_least(1))]
    pub batch_tokens: usize,
    /// Cut documents to N tokens
    #[arg(long, value_name = "N", default_value = "512", value_parser = at_least(2))]
    pub max_length: usize,
    /// Peak learning rate; a cosine to 0 follows the warm-up
    #[arg(long, value_name = "X", default_value = "1e-3", value_parser = positive)]
    pub lr: f64,
    /// Share of the steps in which the learning rate rises from 0
    #[arg(long, value_name = "X", default_value = "0.02", value_parser = share)]
    pub warmup: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", default_value = "0", value_parser = not_negative)]
    pub weight_decay: f64,
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    /// Seed of the initial weights and the order
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Float types of activations and products; auto: bf16 where the saved weights are 16-bit and the device multiplies
    /// such numbers in hardware, else f32
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = one_of(PRECISIONS))]
    pub precision: PrecisionChoice,
    /// Type of the saved weights
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    pub dtype: SavedType,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SavedType {
    F32,
    Bf16,
    F16,
}

impl From<SavedType> for DType {
    fn from(saved: SavedType) -> DType {
        match saved {
            SavedType::F32 => DType::F32,
            SavedType::Bf16 => DType::BF16,
            SavedType::F16 => DType::F16,
        }
    }
}

#[derive(Args)]
pub struct PresetsArgs {
    /// Only this preset, or those whose names begin so
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const SCHEDULES: &[(&str, Schedule)] =
    &[("constant", Schedule::Constant), ("linear", Schedule::Linear), ("cosine", Schedule::Cosine)];
const RECOMPUTE: &[(&str, Recompute)] = &[("auto", Recompute::Auto), ("on", Recompute::On), ("off", Recompute::Off)];
const PRECISIONS: &[(&str, PrecisionChoice)] =
    &[("auto", PrecisionChoice::Auto), ("f32", PrecisionChoice::F32), ("bf16", PrecisionChoice::Bf16)];
const FORWARD_TASKS: &[(&str, InspectTask)] = &[("cls", InspectTask::Classification), ("lm", InspectTask::CausalLm)];

fn one_of<T: Copy + Send + Sync>(choices: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    let value = |name: String| choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    PossibleValuesParser::new(choices.iter().map(|(name, _)| *name))
        .try_map(move |name| value(name).ok_or("not one of the possible values"))
}

pub fn at_least(min: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(min..)
}

fn number(text: &str, expected: &str, ok: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x.is_finite() && ok(x)).ok_or_else(|| format!("expected {expected}"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |x| x > 0.0)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a number of at least 0", |x| x >= 0.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn below_one(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to below 1", |x| (0.0..1.0).contains(&x))
}
