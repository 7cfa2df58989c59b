//! The mistakes of a trained classifier, for the report.

use crate::Result;
use crate::job::{Mistake, RunConfig};
use crate::text::Tokenizer;
use crate::train::{Encoded, Prediction, Target};

/// The misclassified examples with the most probable wrong labels, as many as configured. None unless the target is a
/// single label.
///
/// Errors: a tokenizer that cannot be read.
pub fn most_probable(
    config: &RunConfig,
    labels: &[String],
    examples: &[Encoded],
    predictions: &[Prediction],
) -> Result<Vec<Mistake>> {
    let mut wrong: Vec<Wrong> = examples.iter().zip(predictions).filter_map(Wrong::of).collect();
    wrong.sort_by(|a, b| b.probabilities[0].total_cmp(&a.probabilities[0]));
    wrong.truncate(config.control.mistakes);
    if wrong.is_empty() {
        return Ok(Vec::new());
    }
    let tokenizer = Tokenizer::open(&config.model)?;
    let name = |class: usize| labels.get(class).cloned().unwrap_or_default();
    let mistake = |Wrong { example, label, predicted, probabilities }: Wrong| {
        let text = tokenizer.decode(&example.tokens)?;
        Ok(Mistake { text, label: name(label), predicted: name(predicted), probabilities })
    };
    wrong.into_iter().map(mistake).collect()
}

struct Wrong<'e> {
    example: &'e Encoded,
    label: usize,
    predicted: usize,
    /// Probabilities of the predicted and the right label.
    probabilities: [f64; 2],
}

impl<'e> Wrong<'e> {
    fn of((example, prediction): (&'e Encoded, &Prediction)) -> Option<Wrong<'e>> {
        let Target::Class(label) = example.target else { return None };
        let (label, predicted) = (label as usize, prediction.class());
        if predicted == label {
            return None;
        }
        let each = prediction.probabilities();
        let probabilities = [predicted, label].map(|class| each.get(class).copied().unwrap_or_default());
        Some(Wrong { example, label, predicted, probabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_has_its_probabilities() {
        let example = Encoded { tokens: vec![1], target: Target::Class(0) };
        let of =
            |logits: &[f32]| Wrong::of((&example, &Prediction { logits: logits.to_vec() })).map(|w| w.probabilities);
        assert_eq!(of(&[2.0, 1.0]), None);
        let [predicted, label] = of(&[0.0, 3f32.ln()]).unwrap();
        assert!((predicted - 0.75).abs() < 1e-6 && (label - 0.25).abs() < 1e-6);
    }
}
