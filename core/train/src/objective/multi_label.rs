use super::{Loss, LossInputs, Objective, check_finite, choose};
use crate::batch::{Batch, Encoded, Labels, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::{LabelMetrics, Metrics, ratio};
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

impl MultiLabel {
    pub const NAME: &str = "multi-label classification";
    pub const METRICS: &[&str] = &["accuracy", "exact", "f1", "precision", "recall"];
}

/// The target of an example as `count` numbers.
///
/// Errors: a different kind of target, or a different number of them.
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
        Self::NAME
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

    /// `accuracy`: share of correct answers; `exact`: share of examples with only correct answers; `f1`, `precision`
    /// and `recall`: over all answers (micro).
    fn score(&self, metrics: &[String], examples: &[Encoded], found: &Evaluation) -> Result<Metrics> {
        let mut counts = vec![Counts::default(); self.labels];
        let (mut loss, mut exact) = (0.0, 0.0);
        for (example, prediction) in examples.iter().zip(&found.predictions) {
            check_finite(&prediction.logits)?;
            let mut right = true;
            let pairs = prediction.logits.iter().zip(numbers(self, example, self.labels)?);
            for ((&logit, &label), counts) in pairs.zip(&mut counts).filter(|((_, label), _)| !label.is_nan()) {
                let (x, y) = (f64::from(logit), f64::from(label));
                loss += x.max(0.0) - y * x + (-x.abs()).exp().ln_1p();
                right &= counts.add(x > 0.0, y > 0.5);
            }
            exact += f64::from(u8::from(right));
        }
        let all = counts.iter().copied().fold(Counts::default(), Counts::sum);
        let (micro, examples) = (all.metrics(), found.predictions.len());
        let scores = [
            ("accuracy", ratio(all.right as f64, all.answers as f64)),
            ("exact", ratio(exact, examples as f64)),
            ("f1", micro.f1),
            ("precision", micro.precision),
            ("recall", micro.recall),
        ];
        Ok(Metrics {
            examples: examples as u64,
            loss: ratio(loss, all.answers as f64),
            scores: choose(metrics, &scores)?,
            confusion: vec![],
            per_label: counts.iter().map(Counts::metrics).collect(),
        })
    }
}

/// Answers for one label.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answers: u64,
    right: u64,
    /// Predicted and correct.
    both: u64,
    predicted: u64,
    support: u64,
}

impl Counts {
    /// Whether the answer was right.
    fn add(&mut self, predicted: bool, actual: bool) -> bool {
        self.answers += 1;
        self.right += u64::from(predicted == actual);
        self.both += u64::from(predicted && actual);
        self.predicted += u64::from(predicted);
        self.support += u64::from(actual);
        predicted == actual
    }

    fn sum(self, other: Counts) -> Counts {
        Counts {
            answers: self.answers + other.answers,
            right: self.right + other.right,
            both: self.both + other.both,
            predicted: self.predicted + other.predicted,
            support: self.support + other.support,
        }
    }

    fn metrics(&self) -> LabelMetrics {
        LabelMetrics::new(self.both, self.predicted, self.support)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Prediction;

    /// Compared with scikit-learn 1.9: `precision_recall_fscore_support`, micro averages, `accuracy_score` of rows and
    /// of cells.
    #[test]
    fn scores_are_those_of_scikit_learn() {
        let labels = [[1., 0., 1.], [0., 0., 0.], [1., 1., 0.], [0., 1., 1.], [1., 0., 0.]];
        let logits = [[2., -1., -0.5], [-1., -2., 0.25], [0.5, 1., -3.], [-0.5, 0.75, 2.], [1., 0.1, -0.2]];
        let encoded = |row: &[f32; 3]| Encoded { tokens: vec![1], target: Target::Numbers(row.to_vec()) };
        let examples: Vec<Encoded> = labels.iter().map(encoded).collect();
        let predictions = logits.iter().map(|row: &[f32; 3]| Prediction { logits: row.to_vec() }).collect();
        let found = Evaluation { predictions, ..Evaluation::default() };
        let metrics = MultiLabel { labels: 3 }.score(&[], &examples, &found).unwrap();
        let of = |precision, recall, f1, support| {
            let label = String::new();
            LabelMetrics { label, precision, recall, f1, support }
        };
        let expected = [of(1.0, 1.0, 1.0, 3), of(2.0 / 3.0, 1.0, 0.8, 2), of(0.5, 0.5, 0.5, 2)];
        assert_eq!(metrics.per_label, expected);
        for (id, expected) in
            [("f1", 0.8), ("precision", 0.75), ("recall", 0.8571428571428571), ("exact", 0.4), ("accuracy", 0.8)]
        {
            assert!((metrics.scores[id] - expected).abs() < 1e-14, "{id} {metrics:?}");
        }
        assert!((metrics.loss - 0.4106663361843185).abs() < 1e-8, "{}", metrics.loss);
    }
}
