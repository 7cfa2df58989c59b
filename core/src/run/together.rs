//! A run of several processes: how its batches are divided, what all processes must agree on, and what rank 0 sends to
//! the others.

use super::identity::identity;
use super::prepare::Prepared;
use crate::checkpoint::{Checkpoint, Position};
use crate::hash::{hash_file, hex};
use crate::job::TogetherPlan;
use crate::team::{Agreement, Team};
use crate::train::Snapshot;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Deals examples of these lengths into at most `parts` parts with about equally many tokens. Within a part, they keep
/// their order.
pub fn deal(lengths: &[usize], parts: usize) -> Vec<Vec<usize>> {
    deal_at_most(lengths, parts, usize::MAX)
}

/// The longest first, each to the part with the fewest tokens among those with less than `most` examples.
fn deal_at_most(lengths: &[usize], parts: usize, most: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_by_key(|&i| Reverse(lengths[i]));
    let mut dealt: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); parts.clamp(1, lengths.len().max(1))];
    for i in longest_first {
        let open = dealt.iter_mut().filter(|(_, part)| part.len() < most);
        if let Some((tokens, part)) = open.min_by_key(|(tokens, _)| *tokens) {
            *tokens += lengths[i];
            part.push(i);
        }
    }
    dealt.iter_mut().for_each(|(_, part)| part.sort_unstable());
    dealt.into_iter().map(|(_, part)| part).collect()
}

/// Deals examples of these lengths into as few parts as have at most `budget` tokens each, or one longer example, with
/// about equally many tokens and examples: then the micro-batches of a run have few sizes, each of which takes a plan.
pub fn deal_within(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let tokens = |part: &Vec<usize>| part.iter().map(|&i| lengths[i]).sum::<usize>();
    let mut parts = lengths.iter().sum::<usize>().div_ceil(budget.max(1)).max(1);
    loop {
        let dealt = deal_at_most(lengths, parts, lengths.len().div_ceil(parts));
        if dealt.iter().all(|part| part.len() <= 1 || tokens(part) <= budget) {
            return dealt;
        }
        parts += 1;
    }
}

/// What all processes must agree on before the first step.
pub fn agreement(run: &Prepared) -> Result<Agreement> {
    let mut all = identity(run)?;
    all.insert("sparta-cli".into(), env!("CARGO_PKG_VERSION").into());
    all.insert("sparta-cli (SHA-256)".into(), executable()?);
    for plugin in &run.config.plugins {
        let is = plugin.sha256.clone().unwrap_or_else(|| format!("{}, linked in", plugin.version));
        all.insert(format!("{} plugin {}", plugin.kind, plugin.name), is);
    }
    let control = serde_json::to_value(&run.config.control).map_err(|e| Error::Training(e.to_string()))?;
    all.extend(control.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.to_string())));
    // A run's identity includes samples of the weights.
    let mut hash = Sha256::new();
    run.weights.names().filter_map(|name| run.weights.get(name)).for_each(|view| hash.update(view.raw()));
    all.insert("model weights (SHA-256)".into(), hex(&hash.finalize()));
    Ok(all)
}

/// The hash of the file that this process was started from.
fn executable() -> Result<String> {
    let path = std::env::current_exe().map_err(Error::io("the executable"))?;
    hash_file(&path)
}

/// Who does what; `None` for a single process.
pub fn plan(run: &Prepared, team: &Team) -> Option<TogetherPlan> {
    if team.size() == 1 {
        return None;
    }
    let parts = run.config.micro_batches;
    let lengths = || run.train.iter().map(|example| example.tokens.len());
    let mean = lengths().sum::<usize>() / run.epochs.first().max(1);
    let split = parts.unwrap_or(1);
    let micro_batches =
        (split * mean.div_ceil(split * run.config.micro_batch_tokens()).max(1)).min(run.setup.limits.batch);
    Some(TogetherPlan {
        members: team.members().to_vec(),
        library: team.library().to_owned(),
        exchange: run.config.exchange,
        micro_batches,
        gradient_bytes: if run.setup.limits.head_features { 0 } else { run.setup.exchanged_bytes() },
        alone: parts.map_or(String::new(), |parts| format!(" with --micro-batches {parts}")),
    })
}

/// Sends the value of rank 0 to all processes.
pub fn share<T: Serialize + DeserializeOwned>(team: &mut Team, what: &str, own: &T) -> Result<T> {
    let json = serde_json::to_vec(own).map_err(|e| Error::Training(e.to_string()))?;
    let json = team.share(what, json)?;
    serde_json::from_slice(&json).map_err(|e| Error::Training(format!("{what} cannot be read: {e}")))
}

/// Sends the numbers of rank 0 to all processes.
pub fn share_numbers<T: bytemuck::Pod>(team: &mut Team, what: &str, own: &[T]) -> Result<Vec<T>> {
    Ok(bytemuck::pod_collect_to_vec(&team.share(what, bytemuck::cast_slice(own).to_vec())?))
}

/// A checkpoint without the values of its tensors.
#[derive(Serialize, Deserialize)]
struct Head {
    position: Position,
    updates: u64,
    method_state: Json,
    /// Names of tensors.
    best_values: Vec<String>,
    best_sets: Vec<String>,
    sets: Vec<String>,
}

/// Sends the checkpoint of rank 0 to all processes.
pub fn share_checkpoint(team: &mut Team, own: Option<Checkpoint>) -> Result<Checkpoint> {
    let Checkpoint { position, updates, best, indices, method_state } = own.unwrap_or_default();
    let head = Head {
        position,
        updates,
        method_state,
        best_values: best.values.keys().cloned().collect(),
        best_sets: best.indices.keys().cloned().collect(),
        sets: indices.keys().cloned().collect(),
    };
    let head = share(team, "the checkpoint", &head)?;
    let values = share_tensors(team, head.best_values, &best.values)?;
    let best = Snapshot { values, indices: share_tensors(team, head.best_sets, &best.indices)? };
    let indices = share_tensors(team, head.sets, &indices)?;
    Ok(Checkpoint { position: head.position, updates: head.updates, best, indices, method_state: head.method_state })
}

fn share_tensors<T: bytemuck::Pod>(
    team: &mut Team,
    names: Vec<String>,
    own: &BTreeMap<String, Vec<T>>,
) -> Result<BTreeMap<String, Vec<T>>> {
    let mut one = |name: String| {
        let values = share_numbers(team, &name, own.get(&name).map_or(&[], Vec::as_slice))?;
        Ok((name, values))
    };
    names.into_iter().map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_about_as_many_tokens_and_every_example_once() {
        assert_eq!(deal(&[5, 1, 1, 3, 2], 2), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(deal(&[1, 1], 4), [vec![0], vec![1]]);
        assert_eq!(deal(&[7, 7, 7], 1), [vec![0, 1, 2]]);
    }
}
