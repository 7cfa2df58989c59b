//! What a session computes, and the largest batches it takes.

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
    /// The probability of attention dropout in training.
    pub dropout: f32,
    /// Whether the backward pass recomputes each layer's activations.
    pub recompute: bool,
    pub seed: u64,
    pub head_init: HeadInit,
    pub limits: SessionLimits,
}

/// Initial values of a head that the checkpoint lacks.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadInit {
    /// Normal with mean 0.
    Normal { std: f64 },
    /// A copy of these rows of the vocabulary head, one per class. It is trained separately from the embeddings, even
    /// if the vocabulary head is tied to them.
    VocabularyRows(Vec<u32>),
}

impl Setup {
    pub(crate) fn buckets(&self) -> Vec<Bucket> {
        buckets(self.adaptation.trained(), &self.optimization)
    }

    /// Whether a step's gradients are stored in sums, to add up micro-batches or for the method to read.
    pub(crate) fn keeps_sums(&self) -> bool {
        let SessionLimits { train, micro_batches, head_features, .. } = self.limits;
        train.is_some() && !head_features && (micro_batches || self.adaptation.keeps_gradients())
    }

    /// Whether gradients of other processes are received.
    pub(crate) fn shares_gradients(&self) -> bool {
        self.limits.shared && self.keeps_sums()
    }

    /// The whole gradients the method may read, in groups that are computed together.
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
pub struct SessionLimits {
    /// The largest training micro-batch; `None` if nothing is trained.
    pub train: Option<Size>,
    /// Whether steps may be split into micro-batches.
    pub micro_batches: bool,
    /// Whether processes share the micro-batches of a step.
    pub shared: bool,
    pub evaluate: Size,
    /// The longest sequence, and so the rows of the rope tables.
    pub positions: usize,
    /// Whether the head is trained on pooled hidden states.
    pub head_features: bool,
    /// Examples of an optimizer step, the most that a head step takes.
    pub batch: usize,
    /// Tokens whose keys and values are cached, if text is generated.
    pub cache: Option<usize>,
}

impl SessionLimits {
    /// The most rows to decode at once.
    pub const DECODED: usize = 256;

    /// The limits of a session that generates texts of up to `tokens` tokens.
    pub fn generation(tokens: usize) -> SessionLimits {
        SessionLimits {
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
        let decoded = self.cache.map_or(0, |_| SessionLimits::DECODED);
        self.train.map_or(0, |s| s.rows).max(self.evaluate.rows).max(decoded)
    }

    pub(crate) fn max_examples(&self) -> usize {
        self.train.map_or(0, |s| s.examples).max(self.evaluate.examples).max(self.batch)
    }
}

/// Activation checkpointing by layer: about a third more work, much less memory, the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Only if the run would not fit the device otherwise.
    #[default]
    Auto,
    On,
    Off,
}
