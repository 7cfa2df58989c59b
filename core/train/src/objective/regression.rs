use super::multi_label::numbers;
use super::{Loss, LossInputs, Objective, check_finite, choose, ratio};
use crate::Result;
use crate::batch::{Batch, Encoded, Labels, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::Metrics;
use sparta_graph::graph::TensorType;
use sparta_graph::ops::SquaredError;
use sparta_graph::{DType, Graph};
use sparta_model::forward::{self, Layers};
use sparta_model::{Decoder, HeadKind};

/// A number: the squared error of the head's only output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regression {}

impl Objective for Regression {
    fn name(&self) -> &'static str {
        "regression"
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

    /// `mae`: mean absolute error; `pearson`: correlation of outputs and targets, 0 where either is constant. The loss is
    /// the mean squared error.
    fn score(&self, metrics: &[String], examples: &[Encoded], found: &Evaluation) -> Result<Metrics> {
        let mut pairs = Vec::with_capacity(examples.len());
        for (example, prediction) in examples.iter().zip(&found.predictions) {
            check_finite(&prediction.logits)?;
            let known = prediction.logits.iter().zip(numbers(self, example, 1)?).filter(|(_, y)| !y.is_nan());
            pairs.extend(known.map(|(&x, &y)| (f64::from(x), f64::from(y))));
        }
        let mean = |f: &dyn Fn(f64, f64) -> f64| ratio(pairs.iter().map(|&(x, y)| f(x, y)).sum(), pairs.len() as f64);
        let (x_mean, y_mean) = (mean(&|x, _| x), mean(&|_, y| y));
        let covariance = mean(&|x, y| (x - x_mean) * (y - y_mean));
        let variances = mean(&|x, _| (x - x_mean).powi(2)) * mean(&|_, y| (y - y_mean).powi(2));
        let scores = [("mae", mean(&|x, y| (x - y).abs())), ("pearson", ratio(covariance, variances.sqrt()))];
        Ok(Metrics {
            examples: found.predictions.len() as u64,
            loss: mean(&|x, y| (x - y).powi(2)),
            scores: choose(metrics, &scores)?,
            confusion: vec![],
        })
    }
}
