use super::multi_label::numbers;
use super::{Loss, LossInputs, Objective, check_finite, choose};
use crate::Result;
use crate::batch::{Batch, Encoded, Labels, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::{Metrics, ratio};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::SquaredError;
use sparta_graph::{DType, Graph};
use sparta_model::forward::{self, Layers};
use sparta_model::{Decoder, HeadKind};

/// A number: the squared error of the head's only output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regression {}

impl Regression {
    pub const NAME: &str = "regression";
    pub const METRICS: &[&str] = &["pearson", "spearman", "mse", "mae"];
}

impl Objective for Regression {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn head(&self) -> HeadKind {
        HeadKind::Classification { classes: 1 }
    }

    fn batch(&self, examples: &[&Encoded]) -> Result<Batch> {
        let mut labels = Vec::with_capacity(examples.len());
        for example in examples {
            labels.extend(numbers(self, example, 1)?);
        }
        Ok(Batch::new(examples, Labels::Numbers(labels)))
    }

    fn labels(&self, size: Size) -> TensorType {
        TensorType::new(DType::F32, [size.examples, 1])
    }

    fn outputs(&self) -> usize {
        1
    }

    fn blank(&self) -> Target {
        Target::Numbers(vec![f32::NAN])
    }

    fn loss(&self, graph: &mut Graph, layers: &mut dyn Layers, _: &Decoder, inputs: LossInputs) -> Result<Loss> {
        let numbers = forward::class_logits(graph, layers, inputs.hidden)?;
        graph.set_label("loss");
        let loss = graph.one(SquaredError {}, &[numbers, inputs.labels, inputs.step])?;
        Ok(Loss { loss, outputs: Some(numbers) })
    }

    /// `pearson` and `spearman`: correlation of outputs and targets and of their ranks, 0 if either is constant; `mse`,
    /// the loss, and `mae`: mean squared and mean absolute error.
    fn score(&self, metrics: &[String], examples: &[Encoded], found: &Evaluation) -> Result<Metrics> {
        let (mut outputs, mut targets) = (Vec::new(), Vec::new());
        for (example, prediction) in examples.iter().zip(&found.predictions) {
            check_finite(&prediction.logits)?;
            let known = prediction.logits.iter().zip(numbers(self, example, 1)?).filter(|(_, y)| !y.is_nan());
            for (&x, &y) in known {
                outputs.push(f64::from(x));
                targets.push(f64::from(y));
            }
        }
        let mean = |f: &dyn Fn(f64) -> f64| {
            let errors = outputs.iter().zip(&targets).map(|(x, y)| f(x - y));
            ratio(errors.sum(), outputs.len() as f64)
        };
        let mse = mean(&|error| error * error);
        let scores = [
            ("pearson", correlation(&outputs, &targets)),
            ("spearman", correlation(&ranks(&outputs), &ranks(&targets))),
            ("mse", mse),
            ("mae", mean(&f64::abs)),
        ];
        Ok(Metrics {
            examples: found.predictions.len() as u64,
            loss: mse,
            scores: choose(metrics, &scores)?,
            confusion: vec![],
            per_label: vec![],
        })
    }
}

/// Pearson's correlation.
fn correlation(xs: &[f64], ys: &[f64]) -> f64 {
    let mean = |values: &[f64]| ratio(values.iter().sum(), values.len() as f64);
    let (x_mean, y_mean) = (mean(xs), mean(ys));
    let sum = |f: &dyn Fn(f64, f64) -> f64| xs.iter().zip(ys).map(|(x, y)| f(x - x_mean, y - y_mean)).sum::<f64>();
    ratio(sum(&|x, y| x * y), (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt())
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|&i| ranks[i] = rank);
        below += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Prediction;

    fn score(outputs: &[f32], targets: &[f32]) -> Metrics {
        let examples: Vec<Encoded> =
            targets.iter().map(|&y| Encoded { tokens: vec![1], target: Target::Numbers(vec![y]) }).collect();
        let predictions = outputs.iter().map(|&x| Prediction { logits: vec![x] }).collect();
        Regression {}.score(&[], &examples, &Evaluation { predictions, ..Evaluation::default() }).unwrap()
    }

    /// Compared with SciPy's `pearsonr` and `spearmanr`, with ties, and scikit-learn's errors.
    #[test]
    fn scores_are_those_of_scipy() {
        let targets = [1.5, 2.0, 2.0, 4.25, 0.0, 5.0, 3.5, 3.5];
        let metrics = score(&[1.25, 2.5, 1.75, 4.0, 0.5, 4.5, 4.0, 2.5], &targets);
        for (id, expected) in
            [("pearson", 0.9437079335013792), ("spearman", 0.9573170731707319), ("mse", 0.2734375), ("mae", 0.46875)]
        {
            assert!((metrics.scores[id] - expected).abs() < 1e-12, "{id} {metrics:?}");
        }
        assert_eq!(metrics.loss, metrics.scores["mse"]);
        let constant = score(&[1.0; 8], &targets).scores;
        assert_eq!((constant["pearson"], constant["spearman"]), (0.0, 0.0));
    }

    #[test]
    fn unknown_numbers_do_not_count() {
        assert_eq!(score(&[1.0, 2.0, 9.0], &[1.0, 3.0, f32::NAN]).loss, 0.5);
    }
}
