//! Scores by which a method chooses the elements it trains, from steps of a session that trains, or only
//! differentiates, all of the scored tensors.

use crate::layout::slot_name;
use crate::optimizer::{Optimizer, Slot, Target};
use crate::{Error, Result, Session, SessionLimits, Setup};
use sparta_graph::ops::{Accumulate, Function, Map, Mul};
use sparta_graph::{DType, Graph, GraphError};
use sparta_model::WeightSource;
use sparta_plugin::method::{Parameter, Score};
use std::sync::Arc;

/// Adds up |g| or g^2 instead of updating.
#[derive(Debug)]
struct Sum {
    squared: bool,
}

const SUM: &str = "score";

impl Optimizer for Sum {
    fn title(&self) -> String {
        "a sum of gradients".into()
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot { name: SUM, title: "score", dtype: DType::F32 }]
    }

    fn update(&self, graph: &mut Graph, target: &Target) -> std::result::Result<(), GraphError> {
        let g = target.gradient;
        let term = match self.squared {
            true => graph.one(Mul {}, &[g, g])?,
            false => graph.one(Map { function: Function::Abs }, &[g])?,
        };
        graph.apply(Accumulate {}.into(), &[target.slots[0], term]).map(drop)
    }
}

/// The session that computes scores of one kind for a run of this setup: each of its steps is one of [`Score::count`].
pub fn setup(run: &Setup, score: Score) -> Setup {
    let mut setup = Setup { adaptation: run.adaptation.for_score(score), ..run.clone() };
    setup.limits = SessionLimits { head_features: false, ..setup.limits };
    let squared = match score {
        Score::Change { .. } => return setup,
        Score::Gradient { squared, .. } => squared,
        Score::WeightGradient { .. } => false,
    };
    setup.optimization.optimizer = Arc::new(Sum { squared });
    setup
}

/// The scores of a parameter's elements after the steps.
///
/// Errors: a score that is not finite; a device that fails.
pub fn scores(
    session: &mut Session,
    weights: &dyn WeightSource,
    score: Score,
    parameter: &Parameter,
) -> Result<Vec<f32>> {
    let (name, len) = (&parameter.name, parameter.numel() as usize);
    let base = || {
        let values = weights.get(name).and_then(|view| view.to_f32());
        weights.forget(name);
        values.ok_or_else(|| Error::Method(format!("{name} is new: its elements have no scores")))
    };
    let mut scores = match score {
        Score::Change { .. } => session.tensors().read_f32(name, len)?,
        _ => session.tensors().read_f32(&slot_name(SUM, name), len)?,
    };
    match score {
        Score::Gradient { .. } => {}
        Score::WeightGradient { .. } => scores.iter_mut().zip(base()?).for_each(|(g, w)| *g *= w.abs()),
        Score::Change { .. } => scores.iter_mut().zip(base()?).for_each(|(w, w0)| *w = (*w - w0).abs()),
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(at) => Err(Error::Training(format!("the score of element {at} of {name} is {}", scores[at]))),
        None => Ok(scores),
    }
}
