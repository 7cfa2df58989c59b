//! The plan that is printed before a run allocates anything.

use super::{ChosenPrecision, Needs, PaperMemory, TogetherPlan};
use crate::method::Adaptation;
use crate::model::shown;
use crate::text::PromptPlan;
use crate::train::optimizer::GroupPlan;
use crate::train::{MemoryKind, Schedule};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{DeviceInfo, memory_size};
use sparta_plugin::method::{Options, Role, Score};
use sparta_plugin::task::Target;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunPlan {
    pub model: PathBuf,
    pub family: String,
    /// Scalars of the model, the classification head included.
    pub parameters: u64,
    pub method: String,
    pub method_version: String,
    pub options: Options,
    pub trainable: TrainablePlan,
    pub task: String,
    pub labels: Vec<String>,
    /// The kind of label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The metric that runs are compared by.
    #[serde(default)]
    pub primary: String,
    /// Options of the task's plugin.
    #[serde(default, skip_serializing_if = "Options::is_empty")]
    pub task_options: Options,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptPlan>,
    pub data: DataPlan,
    pub batch_size: usize,
    /// Tokens per optimizer step, if these determine the batch instead of the number of examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Whether a batch may be split, with the gradients summed.
    pub micro_batches: bool,
    /// The number of parts that a batch is split into in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_parts: Option<usize>,
    /// Who does what, if several processes train together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<TogetherPlan>,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
    pub steps_per_epoch: usize,
    pub total_steps: usize,
    /// The optimizer's name and parameters.
    pub optimizer: String,
    /// Groups of tensors with their own rates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupPlan>,
    pub lr: f64,
    pub schedule: Schedule,
    pub seed: u64,
    pub device: DeviceInfo,
    #[serde(default)]
    pub precision: ChosenPrecision,
    /// Bytes on the device by kind.
    pub memory: BTreeMap<MemoryKind, u64>,
    #[serde(default)]
    pub needs: Needs,
    /// The scores computed before training, which choose what is trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scoring: Vec<ScoringPlan>,
    /// Anything unusual about this run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The paper's count for this number of trained parameters.
    pub paper: PaperMemory,
}

/// The most labels listed.
const MOST_LABELS: usize = 50;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainablePlan {
    /// Trained scalars outside the classification head.
    pub body: u64,
    pub head: u64,
    /// `body` as a share of the model without its classification head.
    pub density: f64,
    pub tensors: usize,
}

impl TrainablePlan {
    /// Counts what an adaptation trains.
    pub fn new(adaptation: &Adaptation) -> TrainablePlan {
        let body = adaptation.trained_in_body();
        let density = body as f64 / body_size(adaptation) as f64;
        let tensors = adaptation.trained().len();
        TrainablePlan { body, head: adaptation.trained_count() - body, density, tensors }
    }
}

/// Scalars of the model without its classification head.
pub fn body_size(adaptation: &Adaptation) -> u64 {
    adaptation.parameters.iter().filter(|p| p.role != Role::Head).map(|p| p.numel()).sum()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataPlan {
    pub train: SplitPlan,
    pub dev: SplitPlan,
    pub test: SplitPlan,
    /// Training examples with more tokens are left out.
    pub max_length: usize,
    /// Training examples left out.
    pub too_long: usize,
    /// Dev and test examples truncated to the model's positions.
    pub cut: usize,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SplitPlan {
    pub origin: String,
    pub examples: usize,
    pub tokens: usize,
    /// Tokens trained on, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<usize>,
    /// Absent in plans of earlier versions, and without examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Lengths>,
}

/// A histogram: `counts[i]` examples have more than `i * width` and at most `(i + 1) * width` tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    pub width: usize,
    pub counts: Vec<usize>,
}

impl Lengths {
    /// The most bars of a histogram.
    const BARS: usize = 30;

    /// `None` without a length above 0.
    pub fn of(lengths: impl Iterator<Item = usize> + Clone) -> Option<Lengths> {
        let longest = lengths.clone().max().filter(|&longest| longest > 0)?;
        let width = longest.div_ceil(Self::BARS);
        let mut counts = vec![0; longest.div_ceil(width)];
        lengths.for_each(|length| counts[length.saturating_sub(1) / width] += 1);
        Some(Lengths { width, counts })
    }
}

/// One kind of score by which elements are chosen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScoringPlan {
    pub score: Score,
    /// Scored tensors and their elements.
    pub tensors: usize,
    pub elements: u64,
    /// Expected number of chosen elements.
    pub chosen: u64,
    /// Bytes on the device by kind, freed before training.
    pub memory: BTreeMap<MemoryKind, u64>,
    pub needs: Needs,
}

impl ScoringPlan {
    /// Errors: it does not fit the device, with three ways to make it fit.
    pub fn check_fit(&self, device: &DeviceInfo) -> Result<()> {
        let fits = self.needs.check(&self.memory, device);
        fits.map_err(|e| Error::Training(format!("the scores before training, {}: {e}", self.title())))
    }

    fn title(&self) -> String {
        match self.score {
            Score::Gradient { batches, squared: false } => format!("|g| of {batches} batches"),
            Score::Gradient { batches, squared: true } => format!("g^2 of {batches} batches"),
            Score::WeightGradient { batches } => format!("|w g| of {batches} batches"),
            Score::Change { steps } => format!("|change| in {steps} steps"),
        }
    }
}

impl fmt::Display for ScoringPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (score, chosen, elements) = (self.title(), thousands(self.chosen), thousands(self.elements));
        let memory = memory_size(self.memory.values().sum());
        write!(f, "{score}: {chosen} of {elements} elements of {} tensors, {memory} on the device", self.tensors)
    }
}

impl RunPlan {
    /// Errors: the run, or what is computed before it, does not fit the device, with three ways to make it fit.
    pub fn check_fit(&self) -> Result<()> {
        self.scoring.iter().try_for_each(|scoring| scoring.check_fit(&self.device))?;
        self.needs.check(&self.memory, &self.device)
    }

    /// The labels, in the order of the outputs.
    fn labels(&self) -> String {
        let shown: Vec<String> = self.labels.iter().map(|label| shown(label)).collect();
        let list = match shown.split_at_checked(MOST_LABELS) {
            Some((first, rest)) if !rest.is_empty() => format!("{} and {} more", first.join(", "), rest.len()),
            _ => shown.join(", "),
        };
        match self.target {
            _ if shown.is_empty() => String::new(),
            Some(Target::Classes) => format!(" (any of {list})"),
            Some(Target::Number) => format!(" (the number {list})"),
            _ => format!(" ({list})"),
        }
    }

    /// Total bytes on the device.
    pub fn total_memory(&self) -> u64 {
        self.memory.values().sum()
    }
}

impl fmt::Display for RunPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<String> = self.options.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let TrainablePlan { body, head, density, tensors } = &self.trainable;
        let (family, parameters) = (&self.family, thousands(self.parameters));
        writeln!(f, "model      {} ({family}, {parameters} parameters)", self.model.display())?;
        writeln!(f, "method     {} {}  {}", self.method, self.method_version, options.join(", "))?;
        writeln!(
            f,
            "trainable  {} in the body ({:.4} % of the model) + {} in the head, {tensors} tensors",
            thousands(*body),
            density * 100.0,
            thousands(*head)
        )?;
        writeln!(f, "task       {}{}", self.task, self.labels())?;
        let given = self.task_options.iter().filter(|(_, value)| value.as_str() != Some(""));
        let given: Vec<String> = given.map(|(name, value)| format!("{name} {value}")).collect();
        if !given.is_empty() {
            writeln!(f, "  options  {}", given.join(", "))?;
        }
        if let Some(prompt) = &self.prompt {
            writeln!(f, "  prompt   {:?}", prompt.example)?;
            let words = prompt.words.iter().map(|word| format!("{} {:?} ({})", word.label, word.text, word.token));
            writeln!(f, "  answers  {}", words.collect::<Vec<_>>().join(", "))?;
        }
        for (name, split) in [("train", &self.data.train), ("dev", &self.data.dev), ("test", &self.data.test)] {
            let (examples, tokens) = (thousands(split.examples as u64), thousands(split.tokens as u64));
            let trained = split.trained.map(|n| format!(", {} trained on", thousands(n as u64))).unwrap_or_default();
            writeln!(f, "  {name:<8} {examples:>8} examples, {tokens:>10} tokens{trained}: {}", split.origin)?;
        }
        if self.data.too_long > 0 {
            let (n, max) = (self.data.too_long, self.data.max_length);
            writeln!(f, "  note     {n} training examples of more than {max} tokens are left out")?;
        }
        if self.data.cut > 0 {
            writeln!(f, "  note     {} dev and test examples are truncated to the model's positions", self.data.cut)?;
        }
        for note in self.data.notes.iter().chain(&self.notes) {
            writeln!(f, "  note     {note}")?;
        }
        let micro = match (self.micro_batches, self.micro_batch_parts) {
            (false, _) => String::new(),
            (true, None) => ", split into micro-batches where it exceeds the token budget".to_owned(),
            (true, Some(parts)) => {
                format!(", split into {parts} micro-batches, and further where these exceed the token budget")
            }
        };
        let again = if self.recompute { ", activations recomputed by layer" } else { "" };
        let size = match self.batch_tokens {
            Some(tokens) => format!("up to {} tokens", thousands(tokens as u64)),
            None => format!("{} examples", self.batch_size),
        };
        let (total, epoch) = (thousands(self.total_steps as u64), thousands(self.steps_per_epoch as u64));
        writeln!(f, "steps      {total} in all, {epoch} per epoch, each of {size}{micro}{again}")?;
        let (optimizer, lr) = (&self.optimizer, self.lr);
        let schedule = format!("{:?}", self.schedule).to_lowercase();
        writeln!(f, "optimizer  {optimizer}, learning rate {lr:e}, {schedule} schedule, seed {}", self.seed)?;
        for GroupPlan { group, by_method, tensors, trained } in &self.groups {
            let decay = group.weight_decay.map_or(String::new(), |decay| format!(", weight decay {decay}"));
            let (pattern, factor, trained) = (&group.pattern, group.lr_factor, thousands(*trained));
            let by = if *by_method { format!(", by {}", self.method) } else { String::new() };
            writeln!(
                f,
                "  group    {pattern}: learning rate x {factor}{decay}{by}; {tensors} tensors, {trained} values"
            )?;
        }
        let multiplier = self.device.multiplier.iter().map(|what| format!(", multiplies 16-bit floats in {what}"));
        if let Some(together) = &self.together {
            write!(f, "{together}")?;
        }
        writeln!(f, "device     {} ({}){}", self.device.name, self.device.id, multiplier.collect::<String>())?;
        writeln!(f, "precision  {}", self.precision)?;
        let memory: Vec<String> = MemoryKind::ALL
            .iter()
            .filter_map(|kind| self.memory.get(kind).filter(|&&bytes| bytes > 0).map(|&bytes| (kind, bytes)))
            .map(|(kind, bytes)| format!("{} {}", kind.title(), memory_size(bytes)))
            .collect();
        writeln!(f, "memory     {} on the device: {}", memory_size(self.total_memory()), memory.join(", "))?;
        write!(f, "{}", self.needs)?;
        for scoring in &self.scoring {
            writeln!(f, "scoring    {scoring}")?;
        }
        let sparse = match self.paper.is_sparse() {
            true => format!("{} by its equation (1) for as many trained parameters, ", memory_size(self.paper.sparse)),
            false => String::new(),
        };
        write!(f, "paper      {sparse}{} for full fine-tuning", memory_size(self.paper.full))
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
