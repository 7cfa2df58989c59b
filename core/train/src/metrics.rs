//! Compares predictions with labels.

use serde::{Deserialize, Serialize};
use sparta_model::{Error, Result};
use std::collections::BTreeMap;

/// The metrics of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub examples: u64,
    /// The objective's mean loss over the targets.
    pub loss: f64,
    /// The task's metrics by id: `accuracy`, `f1`, `mcc`.
    #[serde(flatten)]
    pub scores: BTreeMap<String, f64>,
    /// `confusion[label][predicted]`, in examples.
    #[serde(default)]
    pub confusion: Vec<Vec<u64>>,
    /// Metrics of each label, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_label: Vec<LabelMetrics>,
}

impl Metrics {
    /// Names the labels.
    pub fn name_labels(mut self, names: &[String]) -> Metrics {
        self.per_label.iter_mut().zip(names).for_each(|(of, name)| of.label.clone_from(name));
        self
    }
}

/// How well one label was predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelMetrics {
    /// Its name, once set by [`Metrics::name_labels`].
    #[serde(default)]
    pub label: String,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Examples that have the label.
    pub support: u64,
}

impl LabelMetrics {
    /// The metrics of a label that was predicted `predicted` times, of which `right` correctly, and that `support`
    /// examples have.
    pub(crate) fn new(right: u64, predicted: u64, support: u64) -> LabelMetrics {
        let share = |of: u64| ratio(right as f64, of as f64);
        let f1 = ratio(2.0 * right as f64, (predicted + support) as f64);
        LabelMetrics { label: String::new(), precision: share(predicted), recall: share(support), f1, support }
    }
}

/// Compares predictions with labels. Definitions and degenerate cases are scikit-learn's: a ratio whose
/// denominator is 0 is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `counts[label][predicted]`.
    counts: Vec<Vec<u64>>,
    loss_sum: f64,
}

impl Scores {
    /// Ids that [`Scores::metric`] knows.
    pub const METRICS: &'static [&'static str] = &["accuracy", "f1", "mcc", "precision", "recall"];

    pub fn new(classes: usize) -> Self {
        Scores { counts: vec![vec![0; classes]; classes], loss_sum: 0.0 }
    }

    /// Adds one example with its cross-entropy in nats. Errors: a class out of range.
    pub fn add(&mut self, label: usize, predicted: usize, loss: f64) -> Result<()> {
        let classes = self.counts.len();
        let count = self.counts.get_mut(label).and_then(|row| row.get_mut(predicted));
        *count.ok_or_else(|| {
            Error::Data(format!("label {label}, predicted {predicted}: the task has {classes} classes"))
        })? += 1;
        self.loss_sum += loss;
        Ok(())
    }

    /// The number of examples.
    pub fn count(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// `[label][predicted]`, in examples.
    pub fn confusion(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// The mean cross-entropy in nats.
    pub fn loss(&self) -> f64 {
        ratio(self.loss_sum, self.count() as f64)
    }

    /// The metric with this id, in [0, 1] (`mcc`: [-1, 1]); larger is better.
    pub fn metric(&self, id: &str) -> Result<f64> {
        match id {
            "accuracy" => Ok(self.accuracy()),
            "f1" => Ok(self.f1()),
            "mcc" => Ok(self.mcc()),
            "precision" => Ok(self.over_classes(|class| class.precision)),
            "recall" => Ok(self.over_classes(|class| class.recall)),
            _ => Err(Error::Usage(format!("unknown metric `{id}`; choose one of {}", Self::METRICS.join(", ")))),
        }
    }

    /// The share of correct predictions.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.counts.len()).map(|class| self.counts[class][class]).sum();
        ratio(right as f64, self.count() as f64)
    }

    pub fn f1(&self) -> f64 {
        self.over_classes(|class| class.f1)
    }

    /// For two classes, the value of class 1; for more, the mean of the classes' values (macro) over those that occur
    /// among labels or predictions, as in scikit-learn.
    fn over_classes(&self, value: impl Fn(&LabelMetrics) -> f64) -> f64 {
        let per_label = self.per_label();
        if let [_, second] = &per_label[..] {
            return value(second);
        }
        let occurring = |&class: &usize| self.labelled(class) + self.predicted(class) > 0;
        let values: Vec<f64> = (0..per_label.len()).filter(occurring).map(|class| value(&per_label[class])).collect();
        ratio(values.iter().sum(), values.len() as f64)
    }

    /// Metrics of each class, in order.
    pub fn per_label(&self) -> Vec<LabelMetrics> {
        let of =
            |class: usize| LabelMetrics::new(self.counts[class][class], self.predicted(class), self.labelled(class));
        (0..self.counts.len()).map(of).collect()
    }

    /// The Matthews correlation; for more than two classes, Gorodkin's R_K (2004) from the covariances of labels and
    /// predictions.
    pub fn mcc(&self) -> f64 {
        let classes = 0..self.counts.len();
        let n = self.count() as f64;
        let right: u64 = classes.clone().map(|class| self.counts[class][class]).sum();
        let dot = |a: &dyn Fn(usize) -> u64, b: &dyn Fn(usize) -> u64| -> f64 {
            classes.clone().map(|class| a(class) as f64 * b(class) as f64).sum()
        };
        let (labels, predictions) = (|class| self.labelled(class), |class| self.predicted(class));
        let covariance = right as f64 * n - dot(&labels, &predictions);
        let label_variance = n * n - dot(&labels, &labels);
        let prediction_variance = n * n - dot(&predictions, &predictions);
        ratio(covariance, (label_variance * prediction_variance).sqrt())
    }

    fn labelled(&self, class: usize) -> u64 {
        self.counts[class].iter().sum()
    }

    fn predicted(&self, class: usize) -> u64 {
        self.counts.iter().map(|row| row[class]).sum()
    }
}

/// The ratio, or 0 if the denominator is 0.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(classes: usize, labels: &[usize], predicted: &[usize]) -> Scores {
        let mut scores = Scores::new(classes);
        labels.iter().zip(predicted).for_each(|(&y, &p)| scores.add(y, p, 0.5).unwrap());
        scores
    }

    /// Accuracy, F1 and Matthews correlation, compared with scikit-learn 1.x.
    #[track_caller]
    fn check(scores: Scores, expected: [f64; 3]) {
        for (id, expected) in Scores::METRICS.iter().zip(expected) {
            let got = scores.metric(id).unwrap();
            assert!((got - expected).abs() < 1e-14, "{id}: {got}, expected {expected}");
        }
    }

    const TWO: [usize; 24] = [1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1];
    const THREE: [usize; 24] = [2, 2, 1, 0, 1, 1, 1, 1, 2, 1, 0, 1, 1, 2, 0, 0, 1, 0, 2, 1, 1, 0, 2, 1];

    #[test]
    fn two_classes() {
        let predicted = [1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1];
        check(scores(2, &TWO, &predicted), [0.7083333333333334, 0.72, 0.4800793585191832]);
        check(scores(2, &[0, 1, 1, 0], &[1, 0, 0, 1]), [0.0, 0.0, -1.0]);
    }

    #[test]
    fn three_classes() {
        let predicted = [2, 2, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 2, 1, 0, 1, 0, 2, 0, 1, 2, 2, 1];
        check(scores(3, &THREE, &predicted), [0.75, 0.7437755481233742, 0.6082762530298219]);
        // A class that never occurs does not count in the macro mean.
        check(scores(3, &[0, 2, 2, 0, 0], &[0, 2, 0, 0, 2]), [0.6, 0.5833333333333333, 0.16666666666666666]);
    }

    /// Precision, recall, F1 and support of each class, compared with scikit-learn's `precision_recall_fscore_support`.
    #[test]
    fn each_class_has_its_own_scores() {
        let predicted = [2, 2, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 2, 1, 0, 1, 0, 2, 0, 1, 2, 2, 1];
        let three = scores(3, &THREE, &predicted);
        assert_eq!(three.confusion(), [[4, 1, 1], [3, 9, 0], [0, 1, 5]]);
        let expected = [
            (0.5714285714285714, 0.6666666666666666, 0.6153846153846154, 6),
            (0.8181818181818182, 0.75, 0.782608695652174, 12),
            (0.8333333333333334, 0.8333333333333334, 0.8333333333333334, 6),
        ];
        for (got, (precision, recall, f1, support)) in three.per_label().iter().zip(expected) {
            let pairs = [(got.precision, precision), (got.recall, recall), (got.f1, f1)];
            assert!(pairs.iter().all(|(got, expected)| (got - expected).abs() < 1e-14), "{got:?}");
            assert_eq!(got.support, support);
        }
        let macros = [three.metric("precision").unwrap(), three.metric("recall").unwrap()];
        assert!((macros[0] - 0.740981240981241).abs() < 1e-14 && (macros[1] - 0.75).abs() < 1e-14, "{macros:?}");
        let predicted = [1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1];
        let two = scores(2, &TWO, &predicted);
        assert_eq!((two.metric("precision").unwrap(), two.metric("recall").unwrap()), (0.6, 0.9));
    }

    #[test]
    fn degenerate_predictions() {
        check(scores(2, &TWO, &[0; 24]), [0.5833333333333334, 0.0, 0.0]);
        check(scores(2, &TWO, &[1; 24]), [0.4166666666666667, 0.5882352941176471, 0.0]);
        check(scores(2, &[1; 5], &[1; 5]), [1.0, 1.0, 0.0]);
        check(scores(2, &[0; 5], &[0; 5]), [1.0, 0.0, 0.0]);
        check(scores(3, &THREE, &[2; 24]), [0.25, 0.13333333333333333, 0.0]);
        check(Scores::new(2), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn loss_is_the_mean() {
        let mut scores = Scores::new(2);
        for loss in [0.25, 0.5, 1.5] {
            scores.add(0, 1, loss).unwrap();
        }
        assert_eq!((scores.loss(), scores.count()), (0.75, 3));
        assert_eq!(scores.confusion(), [[0, 3], [0, 0]]);
    }

    #[test]
    fn a_class_out_of_range_is_an_error() {
        assert!(Scores::new(2).add(2, 0, 0.0).unwrap_err().to_string().contains("label 2"));
        assert!(Scores::new(2).add(0, 2, 0.0).is_err());
        assert!(Scores::new(2).metric("auc").unwrap_err().to_string().contains("accuracy, f1, mcc, precision, recall"));
    }
}
