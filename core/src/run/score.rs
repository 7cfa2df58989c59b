//! The scores that a run computes before training to choose elements, and the file of the chosen ones.

use crate::job::{Needs, RunConfig, ScoringPlan};
use crate::method::{Adaptation, IndexSet};
use crate::train::score::setup;
use crate::train::{self, Demand, Recompute, Setup};
use crate::weights::{Dtype, OutTensor, TensorFile, save};
use crate::{Error, Result, files};
use sparta_graph::DeviceInfo;
use sparta_plugin::method::Score;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One kind of score, ready to be computed.
pub struct Scoring {
    pub score: Score,
    pub setup: Setup,
    /// Bytes of each segment of the arena.
    pub arena: Vec<usize>,
    pub micro_batch_tokens: usize,
    pub plan: ScoringPlan,
}

/// The scores that a run has to compute, each set up for the device.
pub fn scorings(run: &Setup, demand: &Demand, device: &DeviceInfo) -> Result<Vec<Scoring>> {
    let mut found: Vec<Score> = Vec::new();
    for rule in run.adaptation.scored().values() {
        if !found.contains(&rule.score) {
            found.push(rule.score);
        }
    }
    found.into_iter().map(|score| scoring(run, demand, device, score)).collect()
}

fn scoring(run: &Setup, demand: &Demand, device: &DeviceInfo, score: Score) -> Result<Scoring> {
    let mut setup = setup(run, score);
    let demand = Demand { head_features: false, ..*demand };
    let fit = train::fit(&mut setup, &demand, None, Recompute::Auto, device)?;
    let adaptation = &run.adaptation;
    let own = || adaptation.scored().iter().filter(|(_, rule)| rule.score == score).map(|(&position, _)| position);
    let plan = ScoringPlan {
        score,
        tensors: own().count(),
        elements: own().map(|position| adaptation.parameters[position].numel()).sum(),
        chosen: own().map(|position| adaptation.sparse_size(position) as u64).sum(),
        needs: Needs::new(&fit, None, Recompute::Auto),
        memory: fit.planned.memory,
    };
    Ok(Scoring { score, setup, arena: fit.planned.arena, micro_batch_tokens: fit.micro_batch_tokens, plan })
}

/// The file in a run directory with the chosen elements.
pub const CHOSEN: &str = "chosen.safetensors";

fn path(config: &RunConfig) -> PathBuf {
    config.out.join(CHOSEN)
}

/// The inputs that determine the chosen elements, besides model and data.
fn origin(config: &RunConfig, adaptation: &Adaptation) -> Result<BTreeMap<String, String>> {
    let options = serde_json::to_string(&adaptation.options).map_err(|e| Error::Training(e.to_string()))?;
    let entries = [
        ("format", "sparta-chosen/1".to_owned()),
        ("method", format!("{} {}", adaptation.info.name, adaptation.info.version)),
        ("options", options),
        ("seed", config.seed.to_string()),
    ];
    Ok(entries.map(|(key, value)| (key.to_owned(), value)).into())
}

/// Writes all index sets, by parameter.
pub fn store(config: &RunConfig, adaptation: &Adaptation) -> Result<()> {
    let tensor = |(name, set): (&str, &IndexSet)| OutTensor {
        name: name.to_owned(),
        dtype: Dtype::U32,
        shape: vec![set.indices.len()],
        bytes: Cow::Owned(bytemuck::cast_slice(&set.indices).to_vec()),
    };
    let tensors: Vec<OutTensor> = adaptation.index_sets().into_iter().map(tensor).collect();
    save(&path(config), &tensors, &origin(config, adaptation)?)
}

/// Reads the elements chosen by an earlier process of the run, if any.
///
/// Errors: a file that does not fit the model.
pub fn restore(config: &RunConfig, adaptation: &mut Adaptation) -> Result<()> {
    let path = path(config);
    let positions: Vec<usize> = adaptation.scored().keys().copied().collect();
    if positions.is_empty() || !files::is_file(&path) || RunConfig::of_run(&config.out).is_err() {
        return Ok(());
    }
    let file = TensorFile::open(&path)?;
    if *file.metadata() != origin(config, adaptation)? {
        return Ok(());
    }
    for position in positions {
        let parameter = &adaptation.parameters[position];
        let (tensor, numel) = (parameter.name.clone(), parameter.numel());
        let (_, indices) = file.integers(&tensor)?;
        let fits = |i: &i64| u64::try_from(*i).is_ok_and(|i| i < numel);
        if !(indices.iter().all(fits) && indices.windows(2).all(|pair| pair[0] < pair[1])) {
            return Err(Error::Weights(format!(
                "{}: damaged: the indices of {tensor} do not ascend below its {numel} elements; start again with another --out",
                path.display()
            )));
        }
        let indices = indices.into_iter().map(|i| i as u32).collect();
        adaptation.set_chosen(position, IndexSet { tensor, numel, indices });
    }
    Ok(())
}
