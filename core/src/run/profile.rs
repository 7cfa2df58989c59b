//! Profiles a run's steps.

use super::prepare::prepare_for;
use super::tune;
use crate::job::{RunConfig, Spent};
use crate::plugin::PluginSet;
use crate::team::Team;
use crate::train::batch::split_by_budget;
use crate::train::{Ceiling, Peers, Profile, Session};
use crate::{Error, Result};
use sparta_graph::Backend;

/// Steps that are profiled; the fastest one counts, so that one-time costs are left out.
const STEPS: usize = 5;

/// Does a few optimizer steps on the first batch as [`super::run`] would, and discards the result. With several processes,
/// also measures an exchange of the gradients of a micro-batch.
///
/// Errors: those of [`super::run`]; a run whose steps do not involve the model; a device that cannot time single calls.
pub fn profile(
    config: &RunConfig,
    plugins: &PluginSet,
    mut device: Box<dyn Backend>,
    team: &mut Team,
) -> Result<(Profile, Option<Spent>)> {
    tune::start(&mut *device, config, team.size())?;
    let prepared = prepare_for(config, plugins, &device.info(), team.size())?;
    prepared.plan.check_fit()?;
    prepared.weights.check_present()?;
    if prepared.setup.limits.head_features {
        let what = "only the head is trained, on features that are computed once, so there is no step to profile";
        return Err(Error::Usage(what.into()));
    }
    let lengths: Vec<usize> = prepared.train.iter().map(|example| example.tokens.len()).collect();
    let ends = split_by_budget(&lengths, prepared.config.micro_batch_tokens(), config.batch_size);
    let first = &prepared.train[..ends.first().copied().unwrap_or(0)];
    let batch = prepared.setup.objective.pack(first)?;
    let gradients = vec![0f32; (prepared.setup.exchanged_bytes() / 4) as usize];
    let ceiling = Ceiling::measure(&mut *device)?;
    let mut session = Session::open(device, &prepared.weights, prepared.setup, &prepared.arena)?;
    let (mut fastest, mut exchange): (Option<Profile>, Option<Spent>) = (None, None);
    for _ in 0..STEPS {
        let (_, profile) = session.step_profiled(&batch, prepared.lr, &ceiling)?;
        if fastest.as_ref().is_none_or(|fastest| profile.seconds() < fastest.seconds()) {
            fastest = Some(profile);
        }
        let before = team.spent().unwrap_or_default();
        team.gather(&gradients)?;
        let took = team.spent().map(|after| after.since(&before));
        if took.zip(exchange).is_none_or(|(took, best)| took.exchanging < best.exchanging) {
            exchange = took;
        }
    }
    let fastest = fastest.ok_or_else(|| Error::Training("no step was profiled".into()))?;
    Ok((fastest, exchange))
}
