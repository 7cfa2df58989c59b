//! The diagonal of the Fisher information, from gradients of single examples.

use super::strategy::Aligned;
use super::{base_weight, head_values};
use crate::adapter::AppliedAdapter;
use crate::adapter::stored::{StoredMethod, sparse_and_whole};
use crate::method::{Adaptation, IndexSet};
use crate::model::HEAD;
use crate::train::batch::padded_rows;
use crate::train::layout::size_of;
use crate::train::{Encoded, Prediction, Session, SessionLimits, Size};
use crate::{Error, Result};
use sparta_graph::Backend;
use sparta_plugin::method::Options;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The diagonal for one adapter, at the positions of all adapters.
pub struct Diagonal {
    /// By position of the parameter.
    values: BTreeMap<usize, Vec<f32>>,
    head: usize,
}

impl Diagonal {
    pub fn of(&self, position: usize) -> &[f32] {
        self.values.get(&position).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn head(&self) -> &[f32] {
        self.of(self.head)
    }
}

/// F = mean over the examples x of sum_c p(c|x) (d log p(c|x) / dw)^2, the expectation over the classes taken exactly
/// (Matena and Raffel 2022, equation 3), for each adapter at the positions that any of them changes.
///
/// Errors: an adapter of several heads, or without examples.
pub fn fisher(
    adapters: &[AppliedAdapter],
    aligned: &[Option<Aligned>],
    examples: &[Vec<Encoded>],
    with_head: bool,
    device: &dyn Fn() -> Result<Box<dyn Backend>>,
) -> Result<Vec<Diagonal>> {
    let mut diagonals = Vec::new();
    for (k, applied) in adapters.iter().enumerate() {
        let dir = applied.adapter.dir.display();
        if !applied.objective.pools() {
            return Err(Error::Usage(format!(
                "{dir}: the Fisher information is computed over classes, but this adapter has none"
            )));
        }
        if applied.adapter.heads.len() != 1 {
            return Err(Error::Usage(format!(
                "{dir}: has several heads; the Fisher information is computed for one task"
            )));
        }
        let examples = examples.get(k).filter(|examples| !examples.is_empty());
        let examples =
            examples.ok_or_else(|| Error::Usage(format!("{dir}: there are no examples for the Fisher information")))?;
        diagonals.push(diagonal(applied, aligned, k, examples, with_head, device()?)?);
    }
    Ok(diagonals)
}

fn diagonal(
    applied: &AppliedAdapter,
    aligned: &[Option<Aligned>],
    k: usize,
    examples: &[Encoded],
    with_head: bool,
    device: Box<dyn Backend>,
) -> Result<Diagonal> {
    let (adaptation, values) = at_union(applied, aligned, k, with_head)?;
    let longest = examples.iter().map(|e| e.tokens.len()).max().unwrap_or(1);
    let limits = SessionLimits {
        train: Some(Size { rows: padded_rows(longest), examples: 1 }),
        micro_batches: true,
        shared: false,
        evaluate: size_of(longest, 1),
        positions: longest,
        head_features: false,
        batch: 1,
        cache: None,
    };
    let head = adaptation.position(HEAD).unwrap_or_default();
    let places: BTreeMap<String, usize> = adaptation.trained().into_iter().map(|t| (t.name, t.parameter)).collect();
    let mut session = applied.session_with(device, adaptation, limits)?;
    session.set_trained_values(&values)?;
    let mut sums: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for example in examples {
        add_example(&mut session, example, &places, 1.0 / examples.len() as f64, &mut sums)?;
    }
    Ok(Diagonal { values: sums, head })
}

/// The adapter's model with every position of the union trained, and its values there; also the head, if the adapter
/// has one.
fn at_union(
    applied: &AppliedAdapter,
    aligned: &[Option<Aligned>],
    k: usize,
    with_head: bool,
) -> Result<(Adaptation, BTreeMap<String, Vec<f32>>)> {
    let (mut values, mut indices) = (BTreeMap::new(), BTreeMap::new());
    let parameters = applied.adaptation.parameters.clone();
    for (position, (parameter, aligned)) in parameters.iter().zip(aligned).enumerate() {
        match aligned {
            None => {}
            Some(Aligned { indices: Some(union), columns }) => {
                values.insert(format!("delta.{}", parameter.name), columns[k].clone());
                indices.insert(parameter.name.clone(), union.clone());
            }
            Some(Aligned { indices: None, columns }) => {
                let base = base_weight(applied, position)?;
                values.insert(parameter.name.clone(), base.iter().zip(&columns[k]).map(|(w, d)| w + d).collect());
            }
        }
    }
    if with_head || applied.adapter.values.contains_key(HEAD) {
        values.insert(HEAD.to_owned(), head_values(applied)?);
    }
    let method = StoredMethod::new("fisher", sparse_and_whole(&parameters, &indices, &values)?);
    let adaptation = Adaptation::with_indices(Arc::new(method), parameters, Options::new(), |parameter| {
        let (tensor, numel) = (parameter.name.clone(), parameter.numel());
        Ok(IndexSet { tensor, numel, indices: indices.get(&parameter.name).cloned().unwrap_or_default() })
    })?;
    Ok((adaptation, values))
}

fn add_example(
    session: &mut Session,
    example: &Encoded,
    places: &BTreeMap<String, usize>,
    share: f64,
    sums: &mut BTreeMap<usize, Vec<f32>>,
) -> Result<()> {
    let objective = session.setup().objective.clone();
    let (logits, _) = session.evaluate(&objective.pack([example])?)?;
    for (class, p) in (Prediction { logits }).probabilities().into_iter().enumerate() {
        let labelled = Encoded::class(example.tokens.clone(), class as u32);
        for (name, gradient) in session.gradients(&objective.pack([&labelled])?)? {
            let Some(&position) = places.get(&name) else { continue };
            let sum = sums.entry(position).or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += (share * p * f64::from(g).powi(2)) as f32);
        }
    }
    Ok(())
}
