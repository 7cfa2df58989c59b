//! Evaluates labelled examples, and caches pooled features for head-only training.

use crate::Result;
use crate::batch::{Encoded, split_by_budget};
use crate::peers::{Alone, Peers};
use crate::session::Session;

/// The most examples in an evaluation batch.
pub const EVAL_EXAMPLES: usize = 256;

/// The pooled hidden states of one split, computed once, since they never change when only the head is trained.
///
/// They are computed in fixed groups of examples, in whatever order they are needed, so that a resumed run gets the
/// same bits.
pub struct Features {
    width: usize,
    values: Vec<f32>,
    known: Vec<bool>,
    /// A permutation of the examples, divided into groups of `group`.
    order: Vec<usize>,
    group: usize,
    /// The position of each example in `order`.
    places: Vec<usize>,
}

impl Features {
    pub fn new(order: Vec<usize>, width: usize, group: usize) -> Self {
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &example)| places[example] = place);
        let (values, known) = (vec![0.0; order.len() * width], vec![false; order.len()]);
        Features { width, values, known, order, group, places }
    }

    /// The features of `chosen` examples, `[chosen, width]`; runs the model for groups not yet known.
    pub fn get(
        &mut self,
        session: &mut Session,
        examples: &[Encoded],
        chosen: &[usize],
        budget: usize,
    ) -> Result<Vec<f32>> {
        for &example in chosen {
            if !self.known[example] {
                self.compute_group(session, examples, self.places[example] / self.group, budget)?;
            }
        }
        Ok(chosen.iter().flat_map(|&i| &self.values[i * self.width..(i + 1) * self.width]).copied().collect())
    }

    /// Computes the missing features of the chosen examples together with the other processes: each takes a group at a
    /// time, and spare ones take the groups that come next. All processes must know the same features beforehand.
    pub fn share(
        &mut self,
        session: &mut Session,
        examples: &[Encoded],
        chosen: &[usize],
        budget: usize,
        peers: &mut dyn Peers,
    ) -> Result<()> {
        let unknown = |this: &Self| chosen.iter().copied().find(|&example| !this.known[example]);
        while let Some(example) = unknown(self).filter(|_| peers.size() > 1) {
            let count = self.order.len().div_ceil(self.group);
            let missing = |group: &usize| !self.known[self.order[group * self.group]];
            let first = self.places[example] / self.group;
            let groups: Vec<usize> = (first..count).filter(missing).take(peers.size()).collect();
            let mut own = Vec::new();
            if let Some(&group) = groups.get(peers.rank()) {
                self.compute_group(session, examples, group, budget)?;
                let of = |&i: &usize| self.values[i * self.width..(i + 1) * self.width].to_vec();
                own = self.members(group).iter().flat_map(of).collect();
            }
            own.resize(self.group * self.width, 0.0);
            let all = peers.gather(&own)?;
            for (&group, values) in groups.iter().zip(all.chunks(own.len())) {
                for (&i, row) in self.members(group).to_vec().iter().zip(values.chunks(self.width)) {
                    self.set(i, row);
                }
            }
        }
        Ok(())
    }

    /// The examples of a group.
    fn members(&self, group: usize) -> &[usize] {
        &self.order[group * self.group..self.order.len().min((group + 1) * self.group)]
    }

    fn set(&mut self, example: usize, row: &[f32]) {
        self.values[example * self.width..(example + 1) * self.width].copy_from_slice(row);
        self.known[example] = true;
    }

    fn compute_group(
        &mut self,
        session: &mut Session,
        examples: &[Encoded],
        group: usize,
        budget: usize,
    ) -> Result<()> {
        let members = self.members(group).to_vec();
        for part in batches(examples, &members, budget) {
            let batch = session.setup().objective.pack(part.iter().map(|&i| &examples[i]))?;
            let pooled = session.pool(&batch)?;
            part.iter().zip(pooled.chunks(self.width)).for_each(|(&i, row)| self.set(i, row));
        }
        Ok(())
    }
}

/// Divides a list of example positions into evaluation batches.
fn batches<'a>(examples: &[Encoded], order: &'a [usize], budget: usize) -> Vec<&'a [usize]> {
    let lengths: Vec<usize> = order.iter().map(|&i| examples[i].tokens.len()).collect();
    let ends = split_by_budget(&lengths, budget, EVAL_EXAMPLES);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| &order[start..end]).collect()
}

/// The prediction for one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    pub logits: Vec<f32>,
}

impl Prediction {
    /// The class with the largest logit, the first among equals.
    pub fn class(&self) -> usize {
        let mut best = 0;
        for (i, &logit) in self.logits.iter().enumerate() {
            if logit > self.logits[best] {
                best = i;
            }
        }
        best
    }

    /// The softmax of the logits.
    pub fn probabilities(&self) -> Vec<f64> {
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = self.logits.iter().map(|&z| f64::from(z - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect()
    }

    /// The probability of each label if labels do not exclude each other: the sigmoid of its logit.
    pub fn independent(&self) -> Vec<f64> {
        self.logits.iter().map(|&z| 1.0 / (1.0 + f64::from(-z).exp())).collect()
    }

    /// Cross-entropy with this label: finite for all finite logits.
    pub(crate) fn loss(&self, label: usize) -> Option<f64> {
        let max = f64::from(self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = self.logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        self.logits.get(label).map(|&z| sum.ln() + max - f64::from(z))
    }
}

/// The result of evaluating a list of examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// One per example, in order; empty ones if the objective has no outputs.
    pub predictions: Vec<Prediction>,
    /// The sum of the loss over the targets, as the device computed it.
    pub loss: f64,
    pub targets: usize,
}

/// Evaluates `examples` in order. `progress(done, total)` is called after each batch and may end the evaluation early
/// by returning false; the rest is then missing.
pub fn evaluate(
    session: &mut Session,
    examples: &[Encoded],
    budget: usize,
    features: Option<&mut Features>,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<Evaluation> {
    evaluate_shared(session, examples, budget, features, &mut Alone, |_, done, total| progress(done, total))
}

/// [`evaluate`] for all processes together: each computes every n-th batch, and all get all results, bit-identical to
/// those of a single process. `progress` is called after each round of batches, and must return the same in every
/// process.
pub fn evaluate_shared<P: Peers>(
    session: &mut Session,
    examples: &[Encoded],
    budget: usize,
    mut features: Option<&mut Features>,
    peers: &mut P,
    mut progress: impl FnMut(&mut P, usize, usize) -> bool,
) -> Result<Evaluation> {
    let order: Vec<usize> = (0..examples.len()).collect();
    let width = session.setup().objective.outputs();
    let mut found = Evaluation::default();
    for round in batches(examples, &order, budget).chunks(peers.size()) {
        if let Some(features) = features.as_deref_mut() {
            features.share(session, examples, &round.concat(), budget, peers)?;
        }
        let longest = round.iter().map(|part| part.len()).max().unwrap_or(0);
        let mut own = match round.get(peers.rank()) {
            Some(part) => evaluate_batch(session, examples, part, budget, features.as_deref_mut())?,
            None => Vec::new(),
        };
        own.resize(NUMBERS + longest * width, 0.0);
        let all = peers.gather(&own)?;
        for (part, values) in round.iter().zip(all.chunks(own.len())) {
            let (numbers, outputs) = values.split_at(NUMBERS);
            let logits = |i: usize| outputs[i * width..(i + 1) * width].to_vec();
            found.predictions.extend((0..part.len()).map(|i| Prediction { logits: logits(i) }));
            found.loss += f64::from(numbers[0]);
            found.targets += numbers[1] as usize;
        }
        if !progress(peers, found.predictions.len(), examples.len()) {
            break;
        }
    }
    Ok(found)
}

/// What precedes the outputs of a batch: the sum of its losses, as the f32 of the device, and the number of its
/// targets.
const NUMBERS: usize = 2;

fn evaluate_batch(
    session: &mut Session,
    examples: &[Encoded],
    part: &[usize],
    budget: usize,
    features: Option<&mut Features>,
) -> Result<Vec<f32>> {
    let batch = session.setup().objective.pack(part.iter().map(|&i| &examples[i]))?;
    let (outputs, loss) = match features {
        Some(features) => {
            let pooled = features.get(session, examples, part, budget)?;
            session.head_evaluate(&pooled, &batch)?
        }
        None => session.evaluate(&batch)?,
    };
    Ok([loss as f32, batch.targets() as f32].into_iter().chain(outputs).collect())
}
