use super::{Loss, LossInputs, Objective, choose};
use crate::batch::{Batch, Encoded, Labels, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::{Metrics, ratio};
use crate::{Error, Result};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{IGNORED, LinearCrossEntropy};
use sparta_graph::{DType, Graph};
use sparta_model::forward::{self, Layers};
use sparta_model::{Decoder, HeadKind};

/// Each token given those before it: the cross-entropy of the vocabulary logits over the trained tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextToken {}

impl NextToken {
    pub const METRICS: &[&str] = &["perplexity", "log_likelihood"];
}

impl Objective for NextToken {
    fn name(&self) -> &'static str {
        "next-token prediction"
    }

    fn head(&self) -> HeadKind {
        HeadKind::CausalLm
    }

    /// One label per row: the next token if that is trained; none at the end of a sequence and in padding rows.
    fn batch(&self, examples: &[&Encoded]) -> Result<Batch> {
        let mut labels = Vec::new();
        for example in examples {
            let Target::Tokens(trained) = &example.target else {
                return Err((self as &dyn Objective).wrong_target(example));
            };
            if trained.as_ref().is_some_and(|mask| mask.len() != example.tokens.len()) {
                return Err(Error::Data(
                    "an example does not say for each of its tokens whether it is trained on".into(),
                ));
            }
            let counts = |i: usize| trained.as_ref().is_none_or(|mask| mask[i]);
            let next = (1..example.tokens.len()).map(|i| if counts(i) { example.tokens[i] } else { IGNORED });
            labels.extend(next);
            labels.push(IGNORED);
        }
        let mut batch = Batch::new(examples, Labels::Ids(labels));
        if let Labels::Ids(labels) = &mut batch.labels {
            labels.resize(batch.tokens.len(), IGNORED);
        }
        Ok(batch)
    }

    fn labels(&self, size: Size) -> TensorType {
        TensorType::new(DType::U32, [size.rows])
    }

    fn outputs(&self) -> usize {
        0
    }

    fn blank(&self) -> Target {
        Target::Tokens(None)
    }

    fn loss(&self, graph: &mut Graph, layers: &mut dyn Layers, decoder: &Decoder, inputs: LossInputs) -> Result<Loss> {
        graph.set_label("lm_head");
        let [hidden, weight] = forward::vocabulary_factors(decoder, graph, layers, inputs.hidden)?;
        let op = LinearCrossEntropy::new(decoder.vocab_size, 1.0, decoder.final_softcap);
        let loss = graph.one(op, &[hidden, weight, inputs.labels, inputs.step])?;
        Ok(Loss { loss, outputs: None })
    }

    /// `perplexity`: e to the power of the mean loss per token; `log_likelihood`: minus that loss, in nats per token.
    fn score(&self, metrics: &[String], _: &[Encoded], found: &Evaluation) -> Result<Metrics> {
        let loss = ratio(found.loss, found.targets as f64);
        if !loss.is_finite() {
            return Err(Error::Training(format!("the loss of {} tokens is {loss}", found.targets)));
        }
        Ok(Metrics {
            examples: found.predictions.len() as u64,
            loss,
            scores: choose(metrics, &[("perplexity", loss.exp()), ("log_likelihood", -loss)])?,
            confusion: vec![],
            per_label: vec![],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_next_tokens_that_are_trained_on() {
        let whole = Encoded { tokens: vec![1, 2, 3], target: Target::Tokens(None) };
        let answer = Encoded { tokens: vec![4, 5, 6], target: Target::Tokens(Some(vec![false, false, true])) };
        let batch = NextToken {}.batch(&[&whole, &answer]).unwrap();
        let Labels::Ids(labels) = &batch.labels else { panic!("{:?}", batch.labels) };
        assert_eq!(labels[..7], [2, 3, IGNORED, IGNORED, 6, IGNORED, IGNORED]);
        assert_eq!((labels.len(), batch.targets()), (16, 3));
        let class = Encoded { tokens: vec![1], target: Target::Class(0) };
        assert!(NextToken {}.batch(&[&class]).unwrap_err().to_string().contains("next-token prediction"));
    }
}
