use super::{Loss, LossInputs, Objective};
use crate::batch::{Batch, Encoded, Labels, Size, Target};
use crate::evaluate::Evaluation;
use crate::metrics::{Metrics, Scores};
use crate::{Error, Result};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::CrossEntropy;
use sparta_graph::{DType, Graph};
use sparta_model::forward::{self, Layers};
use sparta_model::{Decoder, HeadKind};

/// One of n classes: the cross-entropy of the classification head's logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    pub classes: usize,
}

impl Objective for Classification {
    fn name(&self) -> &'static str {
        "classification"
    }

    fn head(&self) -> HeadKind {
        HeadKind::Classification { classes: self.classes }
    }

    fn batch(&self, examples: &[&Encoded]) -> Result<Batch> {
        let class = |example: &&Encoded| match example.target {
            Target::Class(class) if (class as usize) < self.classes => Ok(class),
            Target::Class(class) => {
                Err(Error::Data(format!("an example has class {class}, but there are {} classes", self.classes)))
            }
            _ => Err((self as &dyn Objective).wrong_target(example)),
        };
        let labels = examples.iter().map(class).collect::<Result<_>>()?;
        Ok(Batch::new(examples, Labels::Ids(labels)))
    }

    fn labels(&self, size: Size) -> TensorType {
        TensorType::new(DType::U32, [size.examples])
    }

    fn outputs(&self) -> usize {
        self.classes
    }

    fn blank(&self) -> Target {
        Target::Class(0)
    }

    fn loss(&self, graph: &mut Graph, layers: &mut dyn Layers, _: &Decoder, inputs: LossInputs) -> Result<Loss> {
        let logits = forward::class_logits(graph, layers, inputs.hidden)?;
        graph.set_label("loss");
        let loss = graph.one(CrossEntropy::default(), &[logits, inputs.labels, inputs.step])?;
        Ok(Loss { loss, outputs: Some(logits) })
    }

    fn score(&self, metrics: &[String], examples: &[Encoded], found: &Evaluation) -> Result<Metrics> {
        let mut scores = Scores::new(self.classes);
        for (example, prediction) in examples.iter().zip(&found.predictions) {
            let Target::Class(label) = example.target else {
                return Err((self as &dyn Objective).wrong_target(example));
            };
            let label = label as usize;
            let loss = prediction.loss(label).filter(|loss| loss.is_finite()).ok_or_else(|| {
                Error::Training(format!("the logits {:?} of an example are not finite numbers", prediction.logits))
            })?;
            scores.add(label, prediction.class(), loss)?;
        }
        let all: Vec<String> = Scores::METRICS.iter().map(|id| id.to_string()).collect();
        let wanted = if metrics.is_empty() { &all } else { metrics };
        Ok(Metrics {
            examples: scores.count(),
            loss: scores.loss(),
            scores: wanted.iter().map(|id| Ok((id.clone(), scores.metric(id)?))).collect::<Result<_>>()?,
            confusion: scores.confusion().to_vec(),
            per_label: scores.per_label(),
        })
    }
}
