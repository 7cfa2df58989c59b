//! The command line. The options of a run are defined in [`sparta_core::job::config`]; those of the other commands
//! here.

use crate::adapter::AdapterCommand;
use crate::bench::BenchArgs;
use crate::merge::MergeAdaptersArgs;
use crate::plugin::PluginCommand;
use crate::rank::RankArgs;
use crate::report::ReportArgs;
use crate::sweep::SweepArgs;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use sparta_core::job::config::{DEVICE, OUTPUT, PRECISIONS, at_least, fraction, not_negative, one_of, positive};
use sparta_core::job::{OptimizerOptions, PrecisionChoice, RunConfig, Sources};
use sparta_core::run::InspectTask;
use sparta_graph::DType;
use std::path::{Path, PathBuf};

/// Fine-tune decoder language models, for classification or on text, on any GPU, or without one
#[derive(Parser)]
#[command(name = "sparta-cli", version, max_term_width = 120, args_override_self = true)]
pub struct Cli {
    /// Load plugins from this library or directory before any others; may be repeated
    #[arg(long, global = true, value_name = "PATH")]
    pub plugin: Vec<PathBuf>,
    /// Accept plugins other than those that a run was made with
    #[arg(long, global = true)]
    pub allow_other_plugin: bool,
    /// Log to stderr what is searched for, found and opened; -vv logs more, -vvv everything; SPARTA_LOG sets a filter
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Fine-tune a model and evaluate it; without --model and --data, train a small built-in model on built-in reviews
    Run {
        #[command(flatten)]
        args: RunArgs,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Print what `run` would do with the same options: model, trained parameters, memory, device, steps; without
    /// --data, only the memory, from the model's config.json
    Plan {
        #[command(flatten)]
        args: RunArgs,
        /// Plan for a device that this machine lacks:
        /// memory=8GiB,max-buffer=2GiB,max-binding=128MiB,kind=gpu|cpu,types=f32|bf16
        #[arg(long, value_name = "LIMITS", help_heading = DEVICE, conflicts_with = "device")]
        assume: Option<String>,
    },
    /// Show the examples that `run` would train on with the same options: every token, which tokens are trained on, and
    /// which examples are left out
    Data {
        /// Show the examples
        #[arg(value_name = "show", value_parser = ["show"])]
        what: String,
        #[command(flatten)]
        show: ShowArgs,
        #[command(flatten)]
        args: RunArgs,
    },
    /// Try many settings and compare the best of each method on each task
    Sweep(SweepArgs),
    /// Measure the result of a run on a data set
    Eval(EvalArgs),
    /// Classify texts with the result of a run
    Predict(PredictArgs),
    /// Generate text with a language model or a trained run: continue a prompt, or chat
    Generate(GenerateArgs),
    /// Merge, export, describe and compare adapters
    Adapter {
        #[command(subcommand)]
        what: AdapterCommand,
    },
    /// Combine adapters of one base model into a single adapter for all their tasks
    MergeAdapters(MergeAdaptersArgs),
    /// Print the numerical rank of the change that training made to each weight matrix
    Rank(RankArgs),
    /// Write report.html of a run, or of several side by side
    Report(ReportArgs),
    /// List the plugins: the same as `plugin list`
    Plugins(ListArgs),
    /// Create, check, install, remove and list plugins
    Plugin {
        #[command(subcommand)]
        what: PluginCommand,
    },
    /// List the devices and mark the one that `--device auto` picks
    Devices {
        #[command(flatten)]
        list: ListArgs,
        /// Write everything that a bug report about a device needs to FILE: versions, drivers, limits, and a test of
        /// each
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        report: Option<PathBuf>,
    },
    /// Benchmark devices in single ops and whole training steps, and compare them
    Bench(BenchArgs),
    /// List the presets: hyper-parameters of the paper's tables, and published ones for prompts and answers, each with
    /// its source
    Presets(PresetsArgs),
    /// Write the internals of one forward and backward pass to a file
    Inspect {
        #[command(subcommand)]
        what: Inspect,
    },
    /// Pre-train a causal language model from scratch on lines of text
    Pretrain(PretrainArgs),
    /// Print a completion script for a shell, or how to install one
    Completions { shell: Option<Shell> },
}

impl Command {
    /// The runs or adapters that the command reads.
    pub fn runs(&self) -> Vec<&Path> {
        match self {
            Command::Eval(args) => vec![&args.run],
            Command::Predict(args) => vec![&args.run],
            Command::Generate(args) => vec![&args.run],
            Command::Adapter { what } => what.adapters(),
            Command::MergeAdapters(args) => args.adapters(),
            _ => vec![],
        }
    }
}

#[derive(Subcommand)]
pub enum Inspect {
    /// Write logits, loss, hidden states and gradients of one batch, to compare with another implementation
    Forward(ForwardArgs),
}

#[derive(Args)]
pub struct RunArgs {
    /// Read options from a TOML file, under the same names; the command line wins
    #[arg(long = "config", value_name = "FILE.toml")]
    pub config_file: Option<PathBuf>,
    /// Start from a preset such as paper/imdb/gemma-2b/sparta-0.5 (see `presets`); options given elsewhere win
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Continue the run in this directory from its newest checkpoint, with its own options; it may be extended
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    #[command(flatten)]
    pub sources: Sources,
    #[command(flatten)]
    pub config: RunConfig,
    /// Directory for the results [default: runs/TASK-METHOD-N, with the first N that is free]
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Which examples to show.
#[derive(Args)]
pub struct ShowArgs {
    /// Only train, dev or test
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// The first N examples of each split [default: all]
    #[arg(long, value_name = "N", value_parser = at_least(0))]
    pub first: Option<usize>,
}

/// Ways to watch a run.
#[derive(Args, Default)]
pub struct WatchArgs {
    /// Show curves, speed and memory full-screen in the terminal
    #[arg(long, help_heading = OUTPUT)]
    pub tui: bool,
    /// Also write TensorBoard event files into the run directory
    #[arg(long, help_heading = OUTPUT)]
    pub tensorboard: bool,
    /// Before the run, print the time of each kind of operation in one training step against the device's peak, and
    /// write a timeline for chrome://tracing to FILE.json
    #[arg(long, value_name = "FILE.json", help_heading = OUTPUT)]
    pub profile: Option<PathBuf>,
    /// End cleanly, as after Ctrl-C, when standard input closes; for programs that launch runs
    #[arg(long, hide = true)]
    pub until_eof: bool,
}

#[derive(Args)]
pub struct DeviceArgs {
    /// auto, cpu, wgpu, wgpu:N, cuda, cuda:N, or part of a device's name; `run` also takes a list such as cuda:0,1
    #[arg(long, value_name = "D", default_value = "auto", help_heading = DEVICE)]
    pub device: String,
    /// Print one JSON object as the last line on stdout, and everything else on stderr
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

#[derive(Args)]
pub struct EvalArgs {
    /// Run directory, adapter directory of any format, or a full model
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Head to use, for an adapter of several tasks [default: each in turn]
    #[arg(long, value_name = "NAME")]
    pub head: Option<String>,
    /// A task other than the run's, with the same labels
    #[arg(long, value_name = "ID")]
    pub task: Option<String>,
    /// Data other than the run's
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub columns: ColumnArgs,
    /// Column of the labels, for a task that reads any table [default: the one trained with]
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,
    /// train, dev or test
    #[arg(long, value_name = "NAME", default_value = "test")]
    pub split: String,
    /// Use at most N examples
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_examples: Option<usize>,
    /// Float types of activations and products [default: those of the run if there is one, else f32]
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
    /// Texts: CSV, TSV, JSONL, JSON, parquet, .txt with one text per line, or a folder of .txt files; stdin without
    /// FILE
    #[arg(value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub columns: ColumnArgs,
    /// Use only this head, if there are several
    #[arg(long, value_name = "NAME")]
    pub head: Option<String>,
    /// Float types of activations and products [default: those of the run if there is one, else f32]
    #[arg(long, value_name = "TYPE", value_parser = one_of(PRECISIONS))]
    pub precision: Option<PrecisionChoice>,
    /// auto, cpu, wgpu, wgpu:N, cuda, cuda:N, or part of a device's name
    #[arg(long, value_name = "D", default_value = "auto")]
    pub device: String,
    /// Print one JSON object per text
    #[arg(long)]
    pub json: bool,
}

/// Where a table has its texts.
#[derive(Args)]
pub struct ColumnArgs {
    /// csv, tsv, jsonl, json, parquet, lines or folder [default: by the file's name]
    #[arg(long, value_name = "NAME")]
    pub format: Option<String>,
    /// Column of the texts [default: the one trained with, or text, sentence, ...]
    #[arg(long, value_name = "NAME")]
    pub text: Option<String>,
    /// Column of the second texts of pairs
    #[arg(long, value_name = "NAME")]
    pub pair: Option<String>,
}

#[derive(Args)]
pub struct GenerateArgs {
    /// Run directory, adapter directory of any format, or a model: a directory or a name on the hub
    #[arg(value_name = "RUN|MODEL")]
    pub run: PathBuf,
    /// Prompts, one per line, or JSONL with the key `prompt` or `messages`; stdin without FILE. Answers are JSONL
    #[arg(value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Continue this text
    #[arg(long, value_name = "TEXT", conflicts_with = "input")]
    pub prompt: Option<String>,
    /// Treat each prompt as a user's turn, written by the model's chat template; without --prompt and FILE, chat line
    /// by line, which is the default on a terminal
    #[arg(long)]
    pub chat: bool,
    /// Start conversations with this system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Generate at most N tokens
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least(1))]
    pub max_tokens: usize,
    /// Context length in tokens, prompt included [default: the model's, at most 4096]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub context: Option<usize>,
    /// Sampling temperature; 0 always takes the most probable token
    #[arg(long, value_name = "X", default_value = "0", value_parser = not_negative)]
    pub temperature: f64,
    /// Sample from the N most probable tokens [default: all]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens whose probabilities add up to X
    #[arg(long, value_name = "X", default_value = "1", value_parser = fraction)]
    pub top_p: f64,
    /// Sampling seed; equal seeds give equal texts
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Stop before this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Float types of activations and products [default: those of the run if there is one, else f32]
    #[arg(long, value_name = "TYPE", value_parser = one_of(PRECISIONS))]
    pub precision: Option<PrecisionChoice>,
    #[command(flatten)]
    pub device: DeviceArgs,
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
    /// Also write the gradient of every parameter
    #[arg(long)]
    pub grads: bool,
    /// Float types of activations and products
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = one_of(PRECISIONS))]
    pub precision: PrecisionChoice,
    /// File for `logits`, `loss`, `last_hidden_state` and `grad.<name>`
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Args)]
pub struct PretrainArgs {
    /// Directory with config.json and the tokenizer
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A text file with one document per line, or another format with documents under `text`; or a directory with such
    /// files called train and, held out, dev and test
    #[arg(long, value_name = "FILE|DIR")]
    pub data: PathBuf,
    /// Method: full, or another that changes the random weights
    #[arg(long, value_name = "NAME", default_value = "full")]
    pub method: String,
    /// Directory for the run; the trained model goes to `model` in it
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue the run in --out; the other options must be the same
    #[arg(long)]
    pub resume: bool,
    /// Passes over the text
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least(1))]
    pub epochs: usize,
    /// Tokens per step; documents are packed whole
    #[arg(long, value_name = "N", default_value = "2048", value_parser = at_least(1))]
    pub batch_tokens: usize,
    /// Split steps into micro-batches of at most N tokens
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub micro_batch_tokens: Option<usize>,
    /// Stop after N steps
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub max_steps: Option<usize>,
    /// Evaluate on the held-out text every N steps [default: after each epoch]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub eval_interval: Option<usize>,
    /// Write a checkpoint every N steps
    #[arg(long, value_name = "N", default_value = "200", value_parser = at_least(1))]
    pub checkpoint_interval: usize,
    /// Truncate documents to N tokens
    #[arg(long, value_name = "N", default_value = "512", value_parser = at_least(2))]
    pub max_length: usize,
    /// Peak learning rate; a cosine to 0 follows the warm-up
    #[arg(long, value_name = "X", default_value = "1e-3", value_parser = positive)]
    pub lr: f64,
    /// Fraction of the steps over which the learning rate rises linearly from 0
    #[arg(long, value_name = "X", default_value = "0.02", value_parser = fraction)]
    pub warmup: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", default_value = "0", value_parser = not_negative)]
    pub weight_decay: f64,
    #[command(flatten)]
    pub optimizer: OptimizerOptions,
    /// Seed of the initial weights and the order of documents
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Float types of activations and products; auto: bf16 if the saved weights are 16-bit and the device multiplies
    /// such numbers in hardware, else f32
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = one_of(PRECISIONS))]
    pub precision: PrecisionChoice,
    /// Choose a GPU's kernels by rules, without measuring which are fastest
    #[arg(long)]
    pub no_autotune: bool,
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
    /// Preset to show in full, or a prefix of names to list [default: list all]
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

const FORWARD_TASKS: &[(&str, InspectTask)] = &[("cls", InspectTask::Classification), ("lm", InspectTask::CausalLm)];
