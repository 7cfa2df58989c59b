//! Describes an adapter, and compares two.

use super::merge::is_head;
use super::vector::{Delta, delta};
use super::{AppliedAdapter, Kind};
use crate::method::{Adaptation, TrainMode};
use crate::model::from_f32;
use crate::train::Session;
use crate::weights::Weights;
use crate::{Error, Result, hash};
use half::bf16;
use serde::Serialize;
use sparta_plugin::method::{Options, Parameter};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, Serialize)]
pub struct Info {
    pub adapter: PathBuf,
    /// `sparta`, `peft`, `sparse-deltas`, `combined`, `model`.
    pub format: &'static str,
    pub method: String,
    pub method_version: String,
    pub options: Options,
    pub model: PathBuf,
    /// Fingerprint of the base model, if the format stores it.
    pub base: Option<String>,
    /// Labels by head.
    pub heads: BTreeMap<String, Vec<String>>,
    pub trained_in_body: u64,
    pub trained_in_head: u64,
    /// `trained_in_body` as a share of the model without its head.
    pub density: f64,
    pub layers: Vec<LayerInfo>,
    /// Share of the changed weights of the body that differ from the base model's in bf16.
    pub differs_in_bf16: f64,
    /// The same in the types that the base model is stored in.
    pub differs_as_stored: f64,
}

/// One layer of the model, or the tensors of one kind outside the layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerInfo {
    pub layer: String,
    /// Weights that the adapter changes.
    pub changed: u64,
    /// Euclidean norm of the changes.
    pub norm: f64,
}

/// Describes an adapter. `session` is needed if [`super::vector::needs_device`] says so.
pub fn info(applied: &AppliedAdapter, mut session: Option<Session>) -> Result<Info> {
    let (mut layers, mut changed, mut differs) = (Vec::<LayerInfo>::new(), 0u64, [0u64; 2]);
    for (position, parameter) in applied.adaptation.parameters.iter().enumerate() {
        // A layer that the method cannot merge has no weight to compare with the base model's.
        if matches!(applied.adaptation.modes[position], TrainMode::Reparam(_)) && !applied.adaptation.method.mergeable()
        {
            continue;
        }
        let Some(delta) = delta(applied, session.as_mut(), position)? else { continue };
        let layer = layer_name(parameter);
        let (count, norm) = (delta.len() as u64, delta.norm());
        match layers.iter_mut().find(|known| known.layer == layer) {
            Some(known) => (known.changed, known.norm) = (known.changed + count, known.norm.hypot(norm)),
            None => layers.push(LayerInfo { layer, changed: count, norm }),
        }
        if !is_head(parameter) {
            changed += count;
            let counts = differing(&applied.weights, parameter, &delta)?;
            differs.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    let adapter = &applied.adapter;
    let adaptation = &applied.adaptation;
    let (format, method, version, options) = match &adapter.kind {
        Kind::Native(m) => ("sparta", m.method.clone(), m.method_version.clone(), m.options.clone()),
        Kind::Combined(m) => {
            ("combined", m.strategy.name().to_owned(), adaptation.info.version.clone(), m.strategy.options())
        }
        Kind::Peft(_) => ("peft", "lora".into(), String::new(), Options::new()),
        Kind::Deltas { format, method } => (*format, (*method).into(), String::new(), Options::new()),
        Kind::Model => ("model", "none".into(), String::new(), Options::new()),
    };
    let body: u64 = adaptation.parameters.iter().filter(|p| !is_head(p)).map(Parameter::numel).sum();
    let trained_in_body = adaptation.trained_in_body();
    let share = |count: u64| if changed == 0 { 0.0 } else { count as f64 / changed as f64 };
    Ok(Info {
        adapter: adapter.dir.clone(),
        format,
        method,
        method_version: version,
        options,
        model: adapter.model.clone(),
        base: adapter.base.clone(),
        heads: adapter.heads.iter().map(|head| (head.name.clone(), head.labels.clone())).collect(),
        trained_in_body,
        trained_in_head: adaptation.trained_count() - trained_in_body,
        density: trained_in_body as f64 / body as f64,
        layers,
        differs_in_bf16: share(differs[0]),
        differs_as_stored: share(differs[1]),
    })
}

fn layer_name(parameter: &Parameter) -> String {
    match parameter.layer {
        Some(layer) => format!("layer {layer}"),
        None => parameter.name.strip_suffix(".weight").unwrap_or(&parameter.name).to_owned(),
    }
}

/// How many of the changed weights differ in bf16, and as the base model stores them.
fn differing(weights: &Weights, parameter: &Parameter, delta: &Delta) -> Result<[u64; 2]> {
    let missing = || Error::Weights(format!("{} is missing in the base model", parameter.name));
    let view = weights.get(&parameter.name).ok_or_else(missing)?;
    let base = view.to_f32().ok_or_else(missing)?;
    let mut counts = [0; 2];
    for (k, &d) in delta.values().iter().enumerate() {
        let w0 = base.get(delta.position(k)).copied().unwrap_or_default();
        let stored = from_f32(view.dtype, &[w0 + d]) != from_f32(view.dtype, &[w0]);
        let in_bf16 = bf16::from_f32(w0 + d).to_bits() != bf16::from_f32(w0).to_bits();
        counts.iter_mut().zip([in_bf16, stored]).for_each(|(count, differs)| *count += u64::from(differs));
    }
    Ok(counts)
}

/// Share of an adaptation's individually chosen weights that these trained values change in the model's stored type;
/// `None` if it chose none.
pub fn visible_share(
    adaptation: &Adaptation,
    weights: &Weights,
    values: &BTreeMap<String, Vec<f32>>,
) -> Result<Option<f64>> {
    let (mut changed, mut visible) = (0, 0);
    for (parameter, part) in adaptation.parameters.iter().zip(&adaptation.modes) {
        let (TrainMode::Sparse(set), Some(values)) = (part, values.get(&format!("delta.{}", parameter.name))) else {
            continue;
        };
        let delta = Delta::Sparse { indices: set.indices.clone(), values: values.clone() };
        changed += delta.len();
        visible += differing(weights, parameter, &delta)?[1];
    }
    Ok((changed > 0).then(|| visible as f64 / changed as f64))
}

/// Two adapters of one base model, over the body.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub a: PathBuf,
    pub b: PathBuf,
    pub layers: Vec<LayerDifference>,
    /// All layers together.
    pub total: LayerDifference,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerDifference {
    pub layer: String,
    /// Weights that A, B and both change.
    pub changed_a: u64,
    pub changed_b: u64,
    pub both: u64,
    /// Euclidean norms of the changes of A, of B, and of their difference.
    pub norm_a: f64,
    pub norm_b: f64,
    pub norm_difference: f64,
    /// Cosine of the angle between the changes; `None` if one changes nothing.
    pub cosine: Option<f64>,
}

/// Sums of squares and products, from which the figures are computed.
#[derive(Clone, Debug, Default)]
struct Sums {
    counts: [u64; 3],
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.counts.iter_mut().zip(other.counts).for_each(|(x, y)| *x += y);
        (self.aa, self.bb, self.ab) = (self.aa + other.aa, self.bb + other.bb, self.ab + other.ab);
    }

    fn of(a: Option<&Delta>, b: Option<&Delta>) -> Sums {
        let mut sums = Sums::default();
        let squares = |delta: Option<&Delta>| delta.map_or(0.0, |d| d.norm().powi(2));
        (sums.aa, sums.bb) = (squares(a), squares(b));
        sums.counts = [a.map_or(0, Delta::len) as u64, b.map_or(0, Delta::len) as u64, 0];
        if let (Some(a), Some(b)) = (a, b) {
            let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
            for (k, &x) in few.values().iter().enumerate() {
                if let Some(y) = many.at(few.position(k)) {
                    sums.counts[2] += 1;
                    sums.ab += f64::from(x) * f64::from(y);
                }
            }
        }
        sums
    }

    fn report(&self, layer: String) -> LayerDifference {
        let product = (self.aa * self.bb).sqrt();
        LayerDifference {
            layer,
            changed_a: self.counts[0],
            changed_b: self.counts[1],
            both: self.counts[2],
            norm_a: self.aa.sqrt(),
            norm_b: self.bb.sqrt(),
            norm_difference: (self.aa + self.bb - 2.0 * self.ab).max(0.0).sqrt(),
            cosine: (product > 0.0).then(|| self.ab / product),
        }
    }
}

/// Compares two adapters. Each session is needed if [`super::vector::needs_device`] says so.
///
/// Errors: adapters of different base models.
pub fn difference(a: (&AppliedAdapter, Option<Session>), b: (&AppliedAdapter, Option<Session>)) -> Result<Difference> {
    let ((a, mut session_a), (b, mut session_b)) = (a, b);
    same_base(a, b)?;
    let mut layers: Vec<(String, Sums)> = Vec::new();
    let mut total = Sums::default();
    for (position, parameter) in a.adaptation.parameters.iter().enumerate().filter(|(_, p)| !is_head(p)) {
        let (of_a, of_b) = (delta(a, session_a.as_mut(), position)?, delta(b, session_b.as_mut(), position)?);
        if of_a.is_none() && of_b.is_none() {
            continue;
        }
        let sums = Sums::of(of_a.as_ref(), of_b.as_ref());
        total.add(&sums);
        let layer = layer_name(parameter);
        match layers.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, known)) => known.add(&sums),
            None => layers.push((layer, sums)),
        }
    }
    Ok(Difference {
        a: a.adapter.dir.clone(),
        b: b.adapter.dir.clone(),
        layers: layers.into_iter().map(|(layer, sums)| sums.report(layer)).collect(),
        total: total.report("all".into()),
    })
}

/// Errors: the base models differ.
pub fn same_base(a: &AppliedAdapter, b: &AppliedAdapter) -> Result<()> {
    let fingerprint = |applied: &AppliedAdapter| hash::fingerprint(&applied.weights);
    if fingerprint(a) == fingerprint(b) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} and {} change different base models ({} and {}), so they can be neither compared nor combined",
        a.adapter.dir.display(),
        b.adapter.dir.display(),
        a.adapter.model.display(),
        b.adapter.model.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_norms_and_cosine_by_hand() {
        let a = Delta::Sparse { indices: vec![1, 4, 6], values: vec![3.0, 4.0, 0.0] };
        let b = Delta::Sparse { indices: vec![4, 5], values: vec![-1.0, 2.0] };
        let found = Sums::of(Some(&a), Some(&b)).report("l".into());
        assert_eq!((found.changed_a, found.changed_b, found.both), (3, 2, 1));
        assert_eq!((found.norm_a, found.norm_b), (5.0, 5f64.sqrt()));
        // (3, 4, 0) - (0, -1, 2) = (3, 5, -2); product 4 * -1.
        assert!((found.norm_difference - 38f64.sqrt()).abs() < 1e-12);
        assert!((found.cosine.unwrap() + 4.0 / (5.0 * 5f64.sqrt())).abs() < 1e-12);
        let dense = Delta::Dense(vec![0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(Sums::of(Some(&dense), Some(&a)).counts, [7, 3, 3]);
        assert_eq!(Sums::of(Some(&a), None).report("l".into()).cosine, None);
    }
}
