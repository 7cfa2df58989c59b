//! Combines adapters of one base model (section 8 of the paper): the changes of the body are merged, each task keeps
//! its head, and one forward pass answers for all tasks.

mod conflict;
mod fisher;
mod strategy;

pub use conflict::Conflict;
pub use strategy::Strategy;

use super::info::same_base;
use super::merge::is_head;
use super::native::{MANIFEST, read_manifest, read_values, save_manifest, save_values};
use super::vector::{Delta, delta, needs_device};
use super::{Adapter, AppliedAdapter, Head, Kind};
use crate::hash::fingerprint;
use crate::job::thousands;
use crate::method::index_set;
use crate::model::HEAD;
use crate::train::{Encoded, Session, Snapshot};
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use sparta_graph::Backend;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use strategy::Aligned;

pub const FORMAT: &str = "sparta-combined/1";

/// `adapter.json` of combined adapters. Beside it `adapter.safetensors`: `delta.NAME` with the indices `index.NAME`, or
/// `NAME` for a parameter whose elements all changed, and the stacked heads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// `sparta-combined/1`
    pub format: String,
    pub strategy: Strategy,
    pub model: PathBuf,
    /// [`fingerprint`] of the base model.
    pub base: String,
    pub heads: Vec<Head>,
    pub sources: Vec<PathBuf>,
    pub conflicts: Vec<Conflict>,
    /// SHA-256 of `adapter.safetensors`.
    pub values_sha256: String,
}

pub struct CombineRequest<'a> {
    pub adapters: &'a [AppliedAdapter],
    pub strategy: Strategy,
    pub out: &'a Path,
    /// For [`Strategy::Fisher`]: examples for each adapter, from its own data.
    pub examples: Vec<Vec<Encoded>>,
}

/// What was combined.
#[derive(Clone, Debug, Serialize)]
pub struct Combination {
    pub out: PathBuf,
    pub strategy: Strategy,
    pub heads: Vec<String>,
    /// Weights of the body that differ from the base model.
    pub changed: u64,
    /// One for each pair of adapters.
    pub conflicts: Vec<Conflict>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// Combines adapters and writes the result into the new directory `out`. `device` opens the device on which
/// reparametrized weights are merged and gradients computed; it is called only if needed.
///
/// Adapters may have different methods, options and seeds. Errors: fewer than two; different base models; classifiers
/// mixed with language models; invalid settings of the strategy; `out` already exists.
pub fn combine(request: &CombineRequest, device: &dyn Fn() -> Result<Box<dyn Backend>>) -> Result<Combination> {
    let CombineRequest { adapters, strategy, out, .. } = request;
    let [first, others @ ..] = adapters else { return Err(Error::Usage("there is nothing to combine".into())) };
    if others.is_empty() {
        return Err(Error::Usage("give at least two adapters to combine".into()));
    }
    others.iter().try_for_each(|other| same_base(first, other))?;
    let classify = first.objective.pools();
    if let Some(other) = others.iter().find(|other| other.objective.pools() != classify) {
        let [a, b] = [first, other].map(|applied| applied.adapter.dir.display());
        return Err(Error::Usage(format!("{a} and {b}: a classifier and a language model cannot be combined")));
    }
    strategy.check(adapters.len())?;
    if files::exists(out) {
        return Err(Error::Usage(format!("{} already exists; give another --out, or remove it", out.display())));
    }
    let one_head = strategy.averages() && same_heads(adapters);
    let mut aligned = align_all(adapters, device)?;
    let conflicts = conflict::conflicts(adapters, &aligned);
    strategy.prepare(&mut aligned);
    let fisher = match strategy {
        Strategy::Fisher { .. } => fisher::fisher(adapters, &aligned, &request.examples, one_head, device)?,
        _ => Vec::new(),
    };

    let (mut values, mut indices) = (BTreeMap::new(), BTreeMap::new());
    let mut changed = 0;
    for (position, column) in aligned.iter().enumerate() {
        let Some(column) = column else { continue };
        let weights: Vec<&[f32]> = fisher.iter().map(|f: &fisher::Diagonal| f.of(position)).collect();
        let combined = strategy.combine(column, &weights);
        changed += combined.iter().filter(|&&x| x != 0.0).count() as u64;
        store(first, position, column, combined, &mut values, &mut indices)?;
    }
    let heads = match one_head {
        // They all use the base model's vocabulary head.
        _ if !classify => first.adapter.heads.clone(),
        true => {
            let columns = adapters.iter().map(head_values).collect::<Result<Vec<_>>>()?;
            let weights: Vec<&[f32]> = fisher.iter().map(|f| f.head()).collect();
            values.insert(HEAD.to_owned(), strategy.combine(&Aligned { indices: None, columns }, &weights));
            first.adapter.heads.clone()
        }
        false => {
            values.insert(HEAD.to_owned(), adapters.iter().map(head_values).collect::<Result<Vec<_>>>()?.concat());
            distinct(adapters.iter().flat_map(|a| a.adapter.heads.clone()))
        }
    };
    let mut shapes: BTreeMap<String, Vec<usize>> =
        first.adaptation.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    let classes = heads.iter().map(|head| head.labels.len()).sum();
    shapes.insert(HEAD.to_owned(), vec![classes, first.decoder.hidden_size]);
    let manifest = Manifest {
        format: FORMAT.into(),
        strategy: strategy.clone(),
        model: first.adapter.model.clone(),
        base: fingerprint(&first.weights),
        heads,
        sources: adapters.iter().map(|a| a.adapter.dir.clone()).collect(),
        conflicts: conflicts.clone(),
        values_sha256: save_values(out, FORMAT, &values, &shapes, &indices)?,
    };
    save_manifest(out, &manifest)?;
    let heads = manifest.heads.into_iter().map(|head| head.name).collect();
    let (out, strategy, notes) = (out.to_path_buf(), strategy.clone(), same_weights(adapters));
    Ok(Combination { out, strategy, heads, changed, conflicts, notes })
}

/// A note for each pair of adapters that change the same weights because they share a seed.
fn same_weights(adapters: &[AppliedAdapter]) -> Vec<String> {
    let fingerprint = |applied: &AppliedAdapter| -> Option<(u64, String)> {
        let sets = applied.adaptation.index_sets();
        let count: usize = sets.values().map(|set| set.indices.len()).sum();
        (count > 0).then(|| (count as u64, index_set::fingerprint(sets.into_values())))
    };
    let all: Vec<_> = adapters.iter().map(|applied| (applied.adapter.dir.display(), fingerprint(applied))).collect();
    let mut notes = Vec::new();
    for (i, (a, of_a)) in all.iter().enumerate() {
        for (b, of_b) in &all[i + 1..] {
            if let (Some((count, one)), Some((_, other))) = (of_a, of_b)
                && one == other
            {
                notes.push(format!(
                    "{a} and {b} change the same {} weights, an overlap of 100 %, because they share a seed: if \
                     tasks should have their own weights, train them with different --seed",
                    thousands(*count)
                ));
            }
        }
    }
    notes
}

/// Reads what [`combine`] wrote.
pub fn load(dir: &Path) -> Result<Adapter> {
    let manifest: Manifest = read_manifest(dir)?;
    if manifest.heads.is_empty() {
        return Err(Error::Weights(format!("{}: names no head", dir.join(MANIFEST).display())));
    }
    let Snapshot { values, indices } = read_values(dir, &manifest.values_sha256)?;
    Ok(Adapter {
        dir: dir.to_owned(),
        model: manifest.model.clone(),
        base: Some(manifest.base.clone()),
        heads: manifest.heads.clone(),
        values,
        indices,
        kind: Kind::Combined(Box::new(manifest)),
    })
}

/// The changes of all adapters, parameter by parameter, at the union of their positions; the head is left out.
fn align_all(
    adapters: &[AppliedAdapter],
    device: &dyn Fn() -> Result<Box<dyn Backend>>,
) -> Result<Vec<Option<Aligned>>> {
    let open = |applied: &AppliedAdapter| -> Result<Option<Session>> {
        if needs_device(applied) { Ok(Some(applied.session(device()?, 1, 1)?)) } else { Ok(None) }
    };
    let mut sessions = adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for (position, parameter) in adapters[0].adaptation.parameters.iter().enumerate() {
        if is_head(parameter) {
            all.push(None);
            continue;
        }
        let deltas: Vec<Option<Delta>> = adapters
            .iter()
            .zip(&mut sessions)
            .map(|(applied, session)| delta(applied, session.as_mut(), position))
            .collect::<Result<_>>()?;
        all.push(Aligned::new(&deltas, parameter.numel() as usize));
    }
    Ok(all)
}

/// Adds the combined change of a parameter to what is saved: the changed elements, or the whole weight.
fn store(
    base: &AppliedAdapter,
    position: usize,
    column: &Aligned,
    combined: Vec<f32>,
    values: &mut BTreeMap<String, Vec<f32>>,
    indices: &mut BTreeMap<String, Vec<u32>>,
) -> Result<()> {
    let name = &base.adaptation.parameters[position].name;
    if let Some(union) = &column.indices {
        let (set, deltas): (Vec<u32>, Vec<f32>) =
            union.iter().zip(combined).filter(|(_, delta)| *delta != 0.0).map(|(&i, delta)| (i, delta)).unzip();
        if !set.is_empty() {
            values.insert(format!("delta.{name}"), deltas);
            indices.insert(name.clone(), set);
        }
        return Ok(());
    }
    let weight = base_weight(base, position)?.into_iter().zip(combined).map(|(w0, delta)| w0 + delta).collect();
    values.insert(name.clone(), weight);
    Ok(())
}

fn base_weight(base: &AppliedAdapter, position: usize) -> Result<Vec<f32>> {
    let name = &base.adaptation.parameters[position].name;
    let weight = base.weights.get(name).and_then(|view| view.to_f32());
    weight.ok_or_else(|| Error::Weights(format!("{name} is missing in the base model")))
}

/// All heads of an adapter, f32 `[classes, hidden]`: its own, or the base model's.
fn head_values(applied: &AppliedAdapter) -> Result<Vec<f32>> {
    let own = applied.adapter.values.get(HEAD).cloned();
    let base = || applied.weights.get(HEAD).and_then(|view| view.to_f32());
    own.or_else(base).ok_or_else(|| {
        Error::Usage(format!("{}: the head is not stored whole, so it cannot be kept", applied.adapter.dir.display()))
    })
}

/// Whether the adapters were trained for the same task.
fn same_heads(adapters: &[AppliedAdapter]) -> bool {
    let names = |applied: &AppliedAdapter| -> Vec<(String, Vec<String>)> {
        applied.adapter.heads.iter().map(|head| (head.name.clone(), head.labels.clone())).collect()
    };
    adapters.windows(2).all(|pair| names(&pair[0]) == names(&pair[1]))
}

/// Heads with distinct names: a second `sst2` becomes `sst2-2`.
fn distinct(heads: impl Iterator<Item = Head>) -> Vec<Head> {
    let mut result: Vec<Head> = Vec::new();
    for mut head in heads {
        let task = head.name.clone();
        let mut number = 2;
        while result.iter().any(|other| other.name == head.name) {
            head.name = format!("{task}-{number}");
            number += 1;
        }
        result.push(head);
    }
    result
}
