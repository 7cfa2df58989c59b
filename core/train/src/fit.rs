//! Chooses the micro-batch size and activation checkpointing so that a run fits its device.

use crate::batch::Size;
use crate::batch::padded_rows;
use crate::evaluate::EVAL_EXAMPLES;
use crate::layout::{SessionMemory, plan_memory, size_of};
use crate::setup::{Recompute, SessionLimits, Setup};
use crate::{Error, Result};
use sparta_graph::DeviceInfo;

/// Tokens of a micro-batch if memory is no limit.
pub const MICRO_BATCH_TOKENS: usize = 4096;

/// With fewer tokens matrix products become so slow that recomputing activations costs less.
const FEW_TOKENS: usize = 1024;

/// The sizes of the batches that the data gives, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Examples per optimizer step.
    pub batch: usize,
    /// Tokens of the largest batch.
    pub largest_batch: usize,
    /// Tokens of the longest training example, the least a micro-batch can have.
    pub longest_train: usize,
    /// Tokens of the longest example of all splits.
    pub longest: usize,
    /// Whether only the head is trained, on pooled states that are computed once.
    pub head_features: bool,
    /// Tokens whose keys and values are cached, if the run also generates text.
    pub cache: Option<usize>,
    /// Whether every batch is split: its examples have different weights, or a number of micro-batches is given.
    pub split: bool,
    /// Whether processes share the micro-batches of a step.
    pub shared: bool,
}

impl Demand {
    /// The largest batches of a session whose micro-batches have at most `tokens` tokens or one example.
    pub fn limits(&self, tokens: usize) -> SessionLimits {
        let rows = self.largest_batch.min(tokens.max(self.longest_train));
        SessionLimits {
            train: Some(Size { rows: padded_rows(rows), examples: self.batch }),
            micro_batches: (self.largest_batch > tokens || self.split) && !self.head_features,
            shared: self.shared,
            evaluate: size_of(tokens.max(self.longest), EVAL_EXAMPLES),
            positions: self.longest.max(self.cache.unwrap_or(0)),
            head_features: self.head_features,
            batch: self.batch,
            cache: self.cache,
        }
    }

    /// Micro-batch sizes from [`MICRO_BATCH_TOKENS`], halving down to the longest example.
    fn choices(&self) -> Vec<usize> {
        let least = padded_rows(self.longest_train.max(1)).min(MICRO_BATCH_TOKENS);
        let halves = std::iter::successors(Some(MICRO_BATCH_TOKENS), |&tokens| Some(tokens / 2));
        halves.take_while(|&tokens| tokens > least).chain([least]).collect()
    }
}

/// The choices, and what the run then needs.
#[derive(Clone, Debug)]
pub struct Fit {
    pub planned: SessionMemory,
    /// Tokens per micro-batch.
    pub micro_batch_tokens: usize,
    /// Whether the backward pass recomputes activations.
    pub recompute: bool,
    /// What the run would need with the fastest choices, if that does not fit.
    pub refused: Option<SessionMemory>,
}

/// Chooses the fastest settings with which the run fits `device` or, if none fit, those that need
/// least memory. Keeps `tokens` and `recompute` if given.
///
/// Errors: a model whose graph cannot be built.
pub fn fit(
    setup: &mut Setup,
    demand: &Demand,
    tokens: Option<usize>,
    recompute: Recompute,
    device: &DeviceInfo,
) -> Result<Fit> {
    let mut refused: Option<SessionMemory> = None;
    let mut least: Option<(u64, SessionMemory, usize, bool)> = None;
    for (tokens, recompute) in candidates(demand, tokens, recompute) {
        (setup.limits, setup.recompute) = (demand.limits(tokens), recompute);
        let planned = plan_memory(setup, device)?;
        if planned.fits(device) {
            return Ok(Fit { planned, micro_batch_tokens: tokens, recompute, refused });
        }
        let total = planned.total();
        refused.get_or_insert_with(|| planned.clone());
        if least.as_ref().is_none_or(|(other, ..)| total < *other) {
            least = Some((total, planned, tokens, recompute));
        }
    }
    let (_, planned, tokens, recompute) =
        least.ok_or_else(|| Error::Training("there is no micro-batch size to choose from".into()))?;
    (setup.limits, setup.recompute) = (demand.limits(tokens), recompute);
    Ok(Fit { planned, micro_batch_tokens: tokens, recompute, refused })
}

/// The settings to try, fastest first.
fn candidates(demand: &Demand, tokens: Option<usize>, recompute: Recompute) -> Vec<(usize, bool)> {
    let choices = tokens.map_or_else(|| demand.choices(), |tokens| vec![tokens]);
    let with = |on: bool| choices.iter().map(move |&tokens| (tokens, on));
    match recompute {
        Recompute::On => with(true).collect(),
        Recompute::Off => with(false).collect(),
        Recompute::Auto => {
            let many = |&(choice, _): &(usize, bool)| choice >= FEW_TOKENS || tokens.is_some() || choices.len() == 1;
            with(false).filter(many).chain(with(true)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        batch: 16,
        largest_batch: 4096,
        longest_train: 256,
        longest: 300,
        head_features: false,
        cache: None,
        split: false,
        shared: false,
    };

    #[test]
    fn time_is_given_up_before_it_costs_much() {
        let auto = candidates(&DEMAND, None, Recompute::Auto);
        let kept = [4096, 2048, 1024].map(|tokens| (tokens, false));
        let recomputed = [4096, 2048, 1024, 512, 256].map(|tokens| (tokens, true));
        assert_eq!(auto, [&kept[..], &recomputed[..]].concat());
        assert_eq!(candidates(&DEMAND, Some(300), Recompute::Auto), [(300, false), (300, true)]);
        assert_eq!(candidates(&DEMAND, Some(300), Recompute::Off), [(300, false)]);
    }

    #[test]
    fn no_micro_batch_is_smaller_than_an_example() {
        let long = Demand { longest_train: 700, ..DEMAND };
        assert_eq!(long.choices(), [4096, 2048, 1024, 704]);
        assert_eq!(long.limits(16).train, Some(Size { rows: 704, examples: 16 }));
        assert_eq!(Demand { longest_train: 5000, ..DEMAND }.choices(), [4096]);
        assert_eq!(Demand { longest_train: 3, ..DEMAND }.choices().last(), Some(&16));
    }
}
