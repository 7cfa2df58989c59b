//! Task vectors (Ilharco et al. 2023, "Editing models with task arithmetic", section 2): what an adapter adds to each
//! weight of its base model.

use super::AppliedAdapter;
use super::merge::merged_by_method;
use crate::method::TrainMode;
use crate::train::Session;
use crate::{Error, Result};

/// Trained weight minus base weight of one parameter, in f32.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// Elements at these flat positions, ascending.
    Sparse { indices: Vec<u32>, values: Vec<f32> },
    /// Every element.
    Dense(Vec<f32>),
}

impl Delta {
    pub fn len(&self) -> usize {
        self.values().len()
    }

    pub fn values(&self) -> &[f32] {
        match self {
            Delta::Sparse { values, .. } | Delta::Dense(values) => values,
        }
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        match self {
            Delta::Sparse { values, .. } | Delta::Dense(values) => values,
        }
    }

    /// The flat position of the k-th value.
    pub fn position(&self, k: usize) -> usize {
        match self {
            Delta::Sparse { indices, .. } => indices.get(k).map_or(k, |&i| i as usize),
            Delta::Dense(_) => k,
        }
    }

    /// The value at a flat position; `None` where the adapter makes no change.
    pub fn at(&self, position: usize) -> Option<f32> {
        match self {
            Delta::Sparse { indices, values } => {
                let k = indices.binary_search(&u32::try_from(position).ok()?).ok()?;
                values.get(k).copied()
            }
            Delta::Dense(values) => values.get(position).copied(),
        }
    }

    pub fn norm(&self) -> f64 {
        self.values().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    }
}

/// Whether [`delta`] needs a device: reparametrized weights are merged by the method's own graph.
pub fn needs_device(applied: &AppliedAdapter) -> bool {
    applied.adaptation.modes.iter().any(|part| matches!(part, TrainMode::Reparam(_)))
}

/// What the adapter adds to a parameter; `None` if nothing. If the base model has no head, a head's values count in
/// full. `session` comes from [`AppliedAdapter::session`].
pub fn delta(applied: &AppliedAdapter, session: Option<&mut Session>, position: usize) -> Result<Option<Delta>> {
    let parameter = &applied.adaptation.parameters[position];
    let values = |name: &str| {
        let found = applied.adapter.values.get(name);
        found.ok_or_else(|| Error::Weights(format!("{name} is missing")))
    };
    let from_base = |mut tuned: Vec<f32>| {
        if let Some(view) = applied.weights.get(&parameter.name)
            && let Some(base) = view.to_f32()
        {
            tuned.iter_mut().zip(base).for_each(|(w, w0)| *w -= w0);
        }
        Some(Delta::Dense(tuned))
    };
    if let Some(session) = session
        && let Some(tuned) = merged_by_method(session, position)?
    {
        return Ok(from_base(tuned));
    }
    Ok(match &applied.adaptation.modes[position] {
        TrainMode::Frozen => None,
        TrainMode::Sparse(set) if set.indices.is_empty() => None,
        TrainMode::Sparse(set) => Some(Delta::Sparse {
            indices: set.indices.clone(),
            values: values(&format!("delta.{}", parameter.name))?.clone(),
        }),
        TrainMode::Dense => from_base(values(&parameter.name)?.clone()),
        TrainMode::Reparam(_) => {
            return Err(Error::Usage(format!("{} is reparametrized: a device must merge it", parameter.name)));
        }
    })
}
