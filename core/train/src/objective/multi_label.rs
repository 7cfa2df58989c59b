use super::{Loss, LossInputs, Objective, check_finite, choose, ratio};
use crate::batch::{Batch, Encoded, Labels, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::Metrics;
use crate::{Error, Result};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::BinaryCrossEntropy;
use sparta_graph::{DType, Graph};
use sparta_model::forward::{self, Layers};
use sparta_model::{Decoder, HeadKind};

/// Any number of n labels: binary cross-entropy of a logit for each. A label of an example may be unknown (NaN).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiLabel {
    pub labels: usize,
}

/// The target of an example as `count` numbers.
///
/// Errors: another kind of target, or another number of them.
pub(super) fn numbers<'a>(objective: &dyn Objective, example: &'a Encoded, count: usize) -> Result<&'a [f32]> {
    match &example.target {
        Target::Numbers(values) if values.len() == count && values.iter().all(|x| !x.is_infinite()) => Ok(values),
        Target::Numbers(values) => {
            Err(Error::Data(format!("an example has the target {values:?}, expected {count} finite numbers")))
        }
        _ => Err(objective.wrong_target(example)),
    }
}

impl Objective for MultiLabel {
    fn name(&self) -> &'static str {
        "multi-label classification"
    }

    fn head(&self) -> HeadKind {
        HeadKind::Classification { classes: self.labels }
    }

    fn batch(&self, examples: &[&Encoded]) -> Result<Batch> {
        let mut labels = Vec::with_capacity(examples.len() * self.labels);
        for example in examples {
            labels.extend(numbers(self, example, self.labels)?);
        }
        Ok(Batch::new(examples, Labels::Numbers(labels)))
    }

    fn labels(&self, size: Size) -> TensorType {
        TensorType::new(DType::F32, [size.examples, self.labels])
    }

    fn outputs(&self) -> usize {
        self.labels
    }

    fn blank(&self) -> Target {
        Target::Numbers(vec![f32::NAN; self.labels])
    }

    fn loss(&self, graph: &mut Graph, layers: &mut dyn Layers, _: &Decoder, inputs: LossInputs) -> Result<Loss> {
        let logits = forward::class_logits(graph, layers, inputs.hidden)?;
        graph.set_label("loss");
        let loss = graph.one(BinaryCrossEntropy {}, &[logits, inputs.labels, inputs.step])?;
        Ok(Loss { loss, outputs: Some(logits) })
    }

    /// `accuracy`: share of right answers; `exact`: share of examples with right answers only; `f1`: over all answers
    /// (micro).
    fn score(&self, metrics: &[String], examples: &[Encoded], found: &Evaluation) -> Result<Metrics> {
        let (mut loss, mut known, mut right, mut exact) = (0.0, 0.0, 0.0, 0.0);
        let (mut both, mut either) = (0.0, 0.0);
        for (example, prediction) in examples.iter().zip(&found.predictions) {
            check_finite(&prediction.logits)?;
            let before = known - right;
            let pairs = prediction.logits.iter().zip(numbers(self, example, self.labels)?);
            for (&logit, &label) in pairs.filter(|(_, label)| !label.is_nan()) {
                let (x, y) = (f64::from(logit), f64::from(label));
                loss += x.max(0.0) - y * x + (-x.abs()).exp().ln_1p();
                let (said, so) = (x > 0.0, y > 0.5);
                known += 1.0;
                right += f64::from(u8::from(said == so));
                both += f64::from(u8::from(said && so));
                either += f64::from(u8::from(said)) + f64::from(u8::from(so));
            }
            exact += f64::from(u8::from(known - right == before));
        }
        let examples = found.predictions.len();
        let scores = [
            ("accuracy", ratio(right, known)),
            ("exact", ratio(exact, examples as f64)),
            ("f1", ratio(2.0 * both, either)),
        ];
        Ok(Metrics {
            examples: examples as u64,
            loss: ratio(loss, known),
            scores: choose(metrics, &scores)?,
            confusion: vec![],
        })
    }
}
