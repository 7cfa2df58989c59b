//! What is learned: which rows of a batch have labels, the loss on the hidden states, and how outputs are scored.
//!
//! One file per objective. Graphs, sessions, the training loop and the evaluation know only the trait.

mod classification;
mod multi_label;
mod next_token;
mod regression;

pub use classification::Classification;
pub use multi_label::MultiLabel;
pub use next_token::NextToken;
pub use regression::Regression;

use crate::batch::{Batch, Encoded, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::Metrics;
use crate::{Error, Result};
use sparta_graph::graph::TensorType;
use sparta_graph::{Graph, Value};
use sparta_model::forward::Layers;
use sparta_model::{Decoder, HeadKind};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

/// One thing to learn; see the module.
pub trait Objective: Debug + Send + Sync {
    /// What messages and files call it.
    fn name(&self) -> &'static str;

    /// The head that the model needs. With a classification head, the loss sees one row per example, its last one;
    /// otherwise all rows of the batch.
    fn head(&self) -> HeadKind;

    /// Lays examples end to end, with their labels.
    ///
    /// Errors: an example with a different kind of target, or one out of range.
    fn batch(&self, examples: &[&Encoded]) -> Result<Batch>;

    /// The type and shape of the labels of a batch of this size.
    fn labels(&self, size: Size) -> TensorType;

    /// How many numbers an evaluation returns for each example, possibly 0.
    fn outputs(&self) -> usize;

    /// A placeholder target for an example when only its outputs are needed.
    fn blank(&self) -> Target;

    /// Adds the loss to the graph: `step[LOSS_WEIGHT]` times the sum over the targets.
    fn loss(&self, graph: &mut Graph, layers: &mut dyn Layers, decoder: &Decoder, inputs: LossInputs) -> Result<Loss>;

    /// Compares the results of an evaluation with the targets. `metrics` are the requested ids; empty means all.
    ///
    /// Errors: an output or a loss that is not finite; an unknown metric.
    fn score(&self, metrics: &[String], examples: &[Encoded], found: &Evaluation) -> Result<Metrics>;
}

/// The objective of this name with this many outputs per example.
///
/// Errors: there is none.
pub fn named(name: &str, outputs: usize) -> Result<Arc<dyn Objective>> {
    let all: [Arc<dyn Objective>; 4] = [
        Arc::new(Classification { classes: outputs }),
        Arc::new(MultiLabel { labels: outputs }),
        Arc::new(Regression {}),
        Arc::new(NextToken {}),
    ];
    let names = all.each_ref().map(|objective| objective.name());
    let found = all.into_iter().find(|objective| objective.name() == name && objective.outputs() == outputs);
    found.ok_or_else(|| {
        let known = names.join(", ");
        Error::Weights(format!("there is no objective `{name}` with {outputs} outputs; this version knows {known}"))
    })
}

impl dyn Objective + '_ {
    /// [`Objective::batch`] of any list of examples.
    pub fn pack<'a>(&self, examples: impl IntoIterator<Item = &'a Encoded>) -> Result<Batch> {
        self.batch(&examples.into_iter().collect::<Vec<_>>())
    }

    /// Whether the loss sees one row per example, its last one.
    pub fn pools(&self) -> bool {
        matches!(self.head(), HeadKind::Classification { .. })
    }

    fn wrong_target(&self, example: &Encoded) -> Error {
        Error::Data(format!("{} cannot be trained on the target {:?}", self.name(), example.target))
    }
}

/// What the loss is computed from.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs {
    /// Hidden states after the final norm: `[N, hidden]` of the last rows of the examples, or `[T, hidden]`.
    pub hidden: Value,
    /// Labels as described by [`Objective::labels`].
    pub labels: Value,
    /// The host's scalars.
    pub step: Value,
}

#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// f32 `[1]`
    pub loss: Value,
    /// f32 `[N, outputs]`, if the objective has outputs.
    pub outputs: Option<Value>,
}

/// Selects the requested metrics of an objective; all of them if none is named.
fn choose(wanted: &[String], all: &[(&str, f64)]) -> Result<BTreeMap<String, f64>> {
    if wanted.is_empty() {
        return Ok(all.iter().map(|(id, value)| (id.to_string(), *value)).collect());
    }
    let find = |id: &String| match all.iter().find(|(known, _)| known == id) {
        Some((_, value)) => Ok((id.clone(), *value)),
        None => {
            let known: Vec<&str> = all.iter().map(|(id, _)| *id).collect();
            Err(Error::Usage(format!("unknown metric `{id}`; choose one of {}", known.join(", "))))
        }
    };
    wanted.iter().map(find).collect()
}

/// Errors: an output that is not finite.
fn check_finite(outputs: &[f32]) -> Result<()> {
    if outputs.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(Error::Training(format!("the outputs {outputs:?} of an example are not finite numbers")))
}
