//! Shows the examples of a run as they would be trained on.

use super::encode::{Coder, Fate, Item, capped, max_length};
use super::prepare::{read, target};
use crate::job::RunConfig;
use crate::plugin::PluginSet;
use crate::splits::SPLITS;
use crate::train::Target;
use crate::{Error, Result, decoder};
use serde::Serialize;
use sparta_plugin::task::{self, Example, TaskInfo};

/// An example, token by token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownExample {
    pub split: &'static str,
    /// Its place in the split, from 1.
    pub number: usize,
    pub ids: Vec<u32>,
    /// The tokens as written in the vocabulary.
    pub tokens: Vec<String>,
    /// Whether each token is trained on; empty if the example has a label instead.
    pub trained: Vec<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Why it is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Its number of tokens before it was truncated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_from: Option<usize>,
}

/// The summary of a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownSplit {
    pub split: &'static str,
    pub origin: String,
    /// Examples used, and their tokens.
    pub examples: usize,
    pub tokens: usize,
    /// Tokens trained on.
    pub trained: usize,
    /// Length in tokens of the shortest, the median and the longest example used.
    pub lengths: [usize; 3],
    /// Truncated examples.
    pub cut: usize,
    /// Examples left out as too long.
    pub too_long: usize,
    /// Examples without tokens to train on.
    pub untrained: usize,
}

/// All splits, and the plan's notes on them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownData {
    pub max_length: usize,
    pub splits: Vec<ShownSplit>,
    pub notes: Vec<String>,
}

/// Passes the examples of one or all splits to `each`: the `first` ones of each split, or all that the run examines.
///
/// Errors: those of the data, as a run would report them; those of `each`; an unknown split.
pub fn show(
    config: &RunConfig,
    plugins: &PluginSet,
    split: Option<&str>,
    first: Option<usize>,
    each: &mut dyn FnMut(ShownExample) -> Result<()>,
) -> Result<ShownData> {
    config.check()?;
    let wanted: Vec<&'static str> =
        SPLITS.into_iter().filter(|name| split.is_none_or(|split| split == *name)).collect();
    if wanted.is_empty() {
        let known = SPLITS.join(", ");
        return Err(Error::Usage(format!("--split {}: expected one of {known}", split.unwrap_or_default())));
    }
    let decoder = decoder::open(&config.model)?;
    let found = read(config, plugins, &decoder, None)?;
    let (encoder, data) = (&found.encoder, &found.data);
    let coder = Coder {
        encoder,
        target: &|example: &Example| target(&found.task, example),
        max_length: max_length(config, &decoder),
        positions: decoder.max_position_embeddings,
    };
    let mut splits = Vec::new();
    for split in wanted {
        let (examples, origin, cap) = match split {
            "train" => (&data.train, &data.origins.train, config.max_train),
            "dev" => (&data.dev, &data.origins.dev, config.max_dev),
            _ => (&data.test, &data.origins.test, config.max_test),
        };
        let items = match split {
            "train" => coder.train(examples, config)?,
            _ => coder.held_out(split, examples, cap, config.seed)?,
        };
        for item in items.iter().take(first.unwrap_or(usize::MAX)) {
            each(example(split, item, &found.task, &coder))?;
        }
        splits.push(summary(split, capped(origin.clone(), examples.len(), cap), &items));
    }
    let notes = data.origins.notes.iter().cloned().chain(found.note).collect();
    Ok(ShownData { max_length: coder.max_length, splits, notes })
}

fn example(split: &'static str, item: &Item, task: &TaskInfo, coder: &Coder) -> ShownExample {
    let Item { place, encoded, fate, .. } = item;
    let tokenizer = coder.encoder.tokenizer();
    let tokens = encoded.tokens.iter().map(|&id| tokenizer.token(id).unwrap_or_default());
    ShownExample {
        split,
        number: place + 1,
        ids: encoded.tokens.clone(),
        tokens: tokens.collect(),
        trained: trained(item),
        label: label(&encoded.target, task),
        left_out: match fate {
            Fate::TooLong => Some(format!("it has more than {} tokens", coder.max_length)),
            Fate::Untrained => Some("it has no tokens to train on".into()),
            Fate::Kept | Fate::Cut { .. } => None,
        },
        cut_from: match fate {
            Fate::Cut { from } => Some(*from),
            _ => None,
        },
    }
}

fn trained(item: &Item) -> Vec<bool> {
    let length = item.encoded.tokens.len();
    match &item.encoded.target {
        Target::Tokens(Some(trained)) => trained.clone(),
        Target::Tokens(None) => (0..length).map(|token| token > 0).collect(),
        Target::Class(_) | Target::Numbers(_) => vec![false; length],
    }
}

fn label(target: &Target, task: &TaskInfo) -> Option<String> {
    let name = |label: usize| task.labels.get(label).cloned().unwrap_or_default();
    match target {
        Target::Class(label) => Some(name(*label as usize)),
        Target::Numbers(numbers) if task.target() == task::Target::Number => {
            Some(numbers.iter().map(f32::to_string).collect())
        }
        Target::Numbers(numbers) => {
            let has = numbers.iter().enumerate().filter(|(_, has)| **has > 0.5).map(|(label, _)| name(label));
            Some(has.collect::<Vec<_>>().join(", "))
        }
        Target::Tokens(_) => None,
    }
}

fn summary(split: &'static str, origin: String, items: &[Item]) -> ShownSplit {
    let kept = || items.iter().filter(|item| item.fate.is_kept());
    let mut lengths: Vec<usize> = kept().map(|item| item.encoded.tokens.len()).collect();
    lengths.sort_unstable();
    let at = |place: usize| lengths.get(place).copied().unwrap_or_default();
    let count = |is: fn(Fate) -> bool| items.iter().filter(|item| is(item.fate)).count();
    ShownSplit {
        split,
        origin,
        examples: lengths.len(),
        tokens: lengths.iter().sum(),
        trained: kept().flat_map(trained).filter(|trained| *trained).count(),
        lengths: [at(0), at(lengths.len() / 2), at(lengths.len().saturating_sub(1))],
        cut: count(|fate| matches!(fate, Fate::Cut { .. })),
        too_long: count(|fate| fate == Fate::TooLong),
        untrained: count(|fate| fate == Fate::Untrained),
    }
}
