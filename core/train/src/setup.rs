//! What a session computes, and for how large batches.

use crate::batch::{Batch, ROW_MULTIPLE, Size};
use crate::buckets::{Bucket, buckets};
use crate::graphs::Graphs;
use crate::objective::Objective;
use crate::optimizer::Optimization;
use crate::whole::{WholeGroup, whole_groups};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_model::Decoder;
use sparta_model::method::Adaptation;
use std::sync::Arc;

/// What a session computes.
#[derive(Clone)]
pub struct Setup {
    pub decoder: Decoder,
    pub adaptation: Adaptation,
    pub objective: Arc<dyn Objective>,
    pub optimization: Optimization,
    /// Attention dropout while training.
    pub dropout: f32,
    /// Compute the activations of a layer again in the backward pass.
    pub recompute: bool,
    pub seed: u64,
    pub head_init: HeadInit,
    pub limits: Limits,
}

/// First values of a head that the checkpoint does not have.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadInit {
    /// Normal around 0.
    Normal { std: f64 },
    /// A copy of these rows of the vocabulary head, one for each class. It is trained apart from the embeddings, also
    /// where the vocabulary head is tied to them.
    VocabularyRows(Vec<u32>),
}

impl Setup {
    pub(crate) fn buckets(&self) -> Vec<Bucket> {
        buckets(self.adaptation.trained(), &self.optimization)
    }

    /// Whether the gradients of a step go through sums: over micro-batches, or for the method to read them.
    pub(crate) fn keeps_sums(&self) -> bool {
        let Limits { train, micro_batches, head_features, .. } = self.limits;
        train.is_some() && !head_features && (micro_batches || self.adaptation.keeps_gradients())
    }

    /// Whether gradients of other processes come in.
    pub(crate) fn shares_gradients(&self) -> bool {
        self.limits.shared && self.keeps_sums()
    }

    /// What whole gradients the method may read, by what is computed at once.
    pub(crate) fn whole_groups(&self) -> Vec<WholeGroup> {
        if self.limits.train.is_some() { whole_groups(&self.adaptation) } else { Vec::new() }
    }

    pub fn graphs(&self) -> Graphs<'_> {
        Graphs {
            decoder: &self.decoder,
            adaptation: &self.adaptation,
            objective: &*self.objective,
            optimization: &self.optimization,
            dropout: self.dropout,
            recompute: self.recompute,
            positions: self.limits.positions,
        }
    }
}

/// The largest batches of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows and examples of a training micro-batch; `None` when nothing is trained.
    pub train: Option<Size>,
    /// Whether steps may be split into micro-batches.
    pub micro_batches: bool,
    /// Whether processes share the micro-batches of a step.
    pub shared: bool,
    pub evaluate: Size,
    /// Longest sequence: rows of the rope table.
    pub positions: usize,
    /// Whether the head is trained on pooled hidden states.
    pub head_features: bool,
    /// Examples of an optimizer step: the most that a head step takes.
    pub batch: usize,
    /// Tokens whose keys and values are kept, where text is generated.
    pub cache: Option<usize>,
}

impl Limits {
    /// Rows that are decoded at once, at most.
    pub const DECODED: usize = 256;

    /// Of a session that generates text: sequences of up to `tokens` tokens.
    pub fn generation(tokens: usize) -> Limits {
        Limits {
            train: None,
            micro_batches: false,
            shared: false,
            evaluate: Size { rows: ROW_MULTIPLE, examples: 1 },
            positions: tokens,
            head_features: false,
            batch: 0,
            cache: Some(tokens),
        }
    }

    pub(crate) fn check(&self, size: &Size, batch: &Batch) -> Result<()> {
        let rows = self.max_rows();
        if size.rows > rows || size.examples > self.max_examples() {
            let examples = self.max_examples();
            return Err(Error::Training(format!(
                "a batch of {} rows and {} examples exceeds the {rows} rows and {examples} examples planned for",
                size.rows, size.examples
            )));
        }
        let longest = batch.spans.chunks(2).map(|s| (s[1] - s[0]) as usize).max().unwrap_or(0);
        if longest > self.positions {
            return Err(Error::Training(format!(
                "a sequence of {longest} tokens is longer than the {} positions planned for",
                self.positions
            )));
        }
        Ok(())
    }

    pub(crate) fn max_rows(&self) -> usize {
        let decoded = self.cache.map_or(0, |_| Limits::DECODED);
        self.train.map_or(0, |s| s.rows).max(self.evaluate.rows).max(decoded)
    }

    pub(crate) fn max_examples(&self) -> usize {
        self.train.map_or(0, |s| s.examples).max(self.evaluate.examples).max(self.batch)
    }
}

/// Activation checkpointing by layer: about a third more work for much less memory, and the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Where the run would not fit the device otherwise.
    #[default]
    Auto,
    On,
    Off,
}
