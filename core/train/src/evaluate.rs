//! Evaluation of labelled examples, and the cache of pooled features for head-only training.

use crate::batch::{Batch, Encoded, split_by_budget};
use crate::metrics::{Metrics, Scores};
use crate::session::Session;
use crate::{Error, Result};
use sparta_plugin::task::TaskInfo;

/// Examples per evaluation batch, at most.
pub const EVAL_EXAMPLES: usize = 256;

/// Pooled hidden states of one split, computed once: with only the head trained they never change.
///
/// They are computed in fixed groups of examples, whatever is asked for first, so that a resumed run gets the same bits.
pub struct Features {
    width: usize,
    values: Vec<f32>,
    known: Vec<bool>,
    /// A permutation of the examples, cut into groups of `group`.
    order: Vec<usize>,
    group: usize,
    /// Place of each example in `order`.
    places: Vec<usize>,
}

impl Features {
    pub fn new(order: Vec<usize>, width: usize, group: usize) -> Self {
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &example)| places[example] = place);
        let (values, known) = (vec![0.0; order.len() * width], vec![false; order.len()]);
        Features { width, values, known, order, group, places }
    }

    /// The features of `chosen` examples, `[chosen, width]`; runs the body for groups not yet known.
    pub fn get(
        &mut self,
        session: &mut Session,
        examples: &[Encoded],
        chosen: &[usize],
        budget: usize,
    ) -> Result<Vec<f32>> {
        for &example in chosen {
            if !self.known[example] {
                self.compute_group(session, examples, example, budget)?;
            }
        }
        Ok(chosen.iter().flat_map(|&i| &self.values[i * self.width..(i + 1) * self.width]).copied().collect())
    }

    fn compute_group(
        &mut self,
        session: &mut Session,
        examples: &[Encoded],
        example: usize,
        budget: usize,
    ) -> Result<()> {
        let start = self.places[example] / self.group * self.group;
        let group = &self.order[start..self.order.len().min(start + self.group)];
        for part in batches(examples, group, budget) {
            let pooled = session.pool(&Batch::pack(part.iter().map(|&i| &examples[i])))?;
            for (&i, row) in part.iter().zip(pooled.chunks(self.width)) {
                self.values[i * self.width..(i + 1) * self.width].copy_from_slice(row);
                self.known[i] = true;
            }
        }
        Ok(())
    }
}

/// Cuts a list of example positions into evaluation batches.
fn batches<'a>(examples: &[Encoded], order: &'a [usize], budget: usize) -> Vec<&'a [usize]> {
    let lengths: Vec<usize> = order.iter().map(|&i| examples[i].tokens.len()).collect();
    let ends = split_by_budget(&lengths, budget, EVAL_EXAMPLES);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| &order[start..end]).collect()
}

/// What one example was predicted to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    pub logits: Vec<f32>,
}

impl Prediction {
    /// The class of the largest logit, the first of equals.
    pub fn class(&self) -> usize {
        let mut best = 0;
        for (i, &logit) in self.logits.iter().enumerate() {
            if logit > self.logits[best] {
                best = i;
            }
        }
        best
    }

    /// Softmax of the logits.
    pub fn probabilities(&self) -> Vec<f64> {
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = self.logits.iter().map(|&z| f64::from(z - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect()
    }

    /// Cross-entropy with this label: finite for all finite logits.
    fn loss(&self, label: usize) -> Option<f64> {
        let max = f64::from(self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = self.logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        self.logits.get(label).map(|&z| sum.ln() + max - f64::from(z))
    }
}

/// Predictions in the order of `examples`. `progress(done, total)` is called after each batch and may end it early by
/// returning false: the rest is then missing.
pub fn predict(
    session: &mut Session,
    examples: &[Encoded],
    budget: usize,
    mut features: Option<&mut Features>,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<Vec<Prediction>> {
    let order: Vec<usize> = (0..examples.len()).collect();
    let mut predictions = Vec::with_capacity(examples.len());
    for part in batches(examples, &order, budget) {
        let logits = match features.as_deref_mut() {
            Some(features) => {
                let pooled = features.get(session, examples, part, budget)?;
                let labels: Vec<u32> = part.iter().map(|&i| examples[i].label).collect();
                session.head_evaluate(&pooled, &labels)?.0
            }
            None => session.evaluate(&Batch::pack(part.iter().map(|&i| &examples[i])))?.0,
        };
        let classes = logits.len() / part.len();
        predictions.extend(logits.chunks(classes).map(|row| Prediction { logits: row.to_vec() }));
        if !progress(predictions.len(), examples.len()) {
            break;
        }
    }
    Ok(predictions)
}

/// The task's metrics of predictions. Errors: a logit that is not finite.
pub fn score(task: &TaskInfo, examples: &[Encoded], predictions: &[Prediction]) -> Result<Metrics> {
    let mut scores = Scores::new(task.labels.len());
    for (example, prediction) in examples.iter().zip(predictions) {
        let label = example.label as usize;
        let loss = prediction.loss(label).filter(|loss| loss.is_finite()).ok_or_else(|| {
            Error::Training(format!("the logits {:?} of an example are not finite numbers", prediction.logits))
        })?;
        scores.add(label, prediction.class(), loss)?;
    }
    let values = task.metrics.iter().map(|id| Ok((id.clone(), scores.metric(id)?))).collect::<Result<_>>()?;
    Ok(Metrics {
        examples: scores.count(),
        loss: scores.loss(),
        scores: values,
        confusion: scores.confusion().to_vec(),
    })
}
