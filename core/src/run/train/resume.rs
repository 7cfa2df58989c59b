//! How a run continues: what rank 0 finds in the run directory, and the state that all processes restore.

use super::Trainer;
use crate::checkpoint::{Checkpoints, Loaded};
use crate::job::{EarlierLength, Observer, RunResult};
use crate::run::directory::RunDirectory;
use crate::run::prepare::Prepared;
use crate::run::together::{share, share_checkpoint, share_numbers};
use crate::team::Team;
use crate::train::Snapshot;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// The newest checkpoint of a run.
pub enum Newest {
    /// None was written yet.
    Absent,
    /// With messages about those that were skipped.
    Loaded(Box<Loaded>, Vec<String>),
    /// Rank 0 has it.
    Elsewhere,
}

impl Newest {
    pub fn new(found: Option<(Loaded, Vec<String>)>) -> Newest {
        found.map_or(Newest::Absent, |(loaded, damaged)| Newest::Loaded(Box::new(loaded), damaged))
    }
}

/// What to continue from.
pub enum Continuation {
    /// The run is over.
    Finished(Box<RunResult>),
    From(Newest),
}

/// What rank 0 tells the others about the run directory.
#[derive(Default, Serialize, Deserialize)]
struct Found {
    finished: Option<RunResult>,
    earlier: Option<EarlierLength>,
    checkpoint: bool,
}

/// Finds what to continue from, and notes at which step the run was extended.
///
/// Errors: the directory holds a different run; the run would become shorter; no checkpoint is intact.
pub fn look(
    run: &mut Prepared,
    directory: &RunDirectory,
    checkpoints: &Checkpoints,
    team: &mut Team,
    observer: &mut dyn Observer,
) -> Result<Continuation> {
    let (found, newest) = match team.leads() {
        true => look_here(run, directory, checkpoints)?,
        false => (Found::default(), Newest::Absent),
    };
    let found = share(team, "the run directory", &found)?;
    if let Some(result) = found.finished {
        observer.message(&format!("the run already ended at step {}: there is nothing left to do", result.steps));
        return Ok(Continuation::Finished(Box::new(result)));
    }
    run.config.earlier_lengths.extend(found.earlier);
    directory.forget_result()?;
    directory.describe(run)?;
    Ok(Continuation::From(if found.checkpoint && !team.leads() { Newest::Elsewhere } else { newest }))
}

fn look_here(run: &Prepared, directory: &RunDirectory, checkpoints: &Checkpoints) -> Result<(Found, Newest)> {
    // Change nothing before this is known to be the same run.
    let newest = checkpoints.load_newest(|position| directory.check_log(position.metrics_bytes))?;
    let longer = directory.check_length(run)?;
    let step = newest.as_ref().map_or(0, |(loaded, _)| loaded.checkpoint.position.step);
    let finished = if longer.is_none() { directory.finished(step) } else { None };
    let earlier = match longer {
        Some(total_steps) => Some(EarlierLength { until: checkpoints.newest_step()?, total_steps }),
        None => None,
    };
    Ok((Found { finished, earlier, checkpoint: newest.is_some() }, Newest::new(newest)))
}

impl Trainer<'_> {
    /// Resumes from the newest checkpoint, or from the start if there is none.
    pub(super) fn resume(&mut self, newest: Newest) -> Result<()> {
        let loaded = match newest {
            Newest::Absent => {
                self.observer.message("there is no checkpoint yet: the run starts from the beginning");
                (self.position, self.pending, self.torn) = (Default::default(), None, false);
                (self.best, self.method_state) = (Snapshot::default(), Json::Null);
                return self.directory.cut_log(0);
            }
            Newest::Loaded(loaded, damaged) => {
                damaged.iter().for_each(|text| self.observer.message(text));
                self.check_step(loaded.checkpoint.position.step)?;
                Some(*loaded)
            }
            Newest::Elsewhere => None,
        };
        self.adopt(loaded, true)?;
        self.observer.message(&format!("resuming after step {}", self.position.step));
        self.directory.cut_log(self.position.metrics_bytes)
    }

    fn check_step(&self, step: usize) -> Result<()> {
        let total = self.run.total_steps;
        if step > total {
            return Err(Error::Training(format!(
                "{}: its newest checkpoint is after step {step}, beyond the end of the run at step {total}; start again with \
                 another --out",
                self.directory.path().display()
            )));
        }
        Ok(())
    }

    /// Restores a checkpoint that rank 0 has; if `shared`, in all processes.
    pub(super) fn adopt(&mut self, loaded: Option<Loaded>, shared: bool) -> Result<()> {
        let mut alone = Team::alone();
        let team = if shared { &mut *self.team } else { &mut alone };
        if let Some(loaded) = &loaded {
            loaded.check(&self.session.state())?;
        }
        let own = loaded.as_ref().map(|loaded| loaded.checkpoint.clone());
        let checkpoint = share_checkpoint(team, own)?;
        self.session.set_indices(&self.run.weights, &checkpoint.indices)?;
        self.session.set_state(checkpoint.updates, |tensor| {
            let own = loaded.as_ref().map_or(Ok(Vec::new()), |loaded| loaded.values(tensor))?;
            share_numbers(team, &tensor.name, &own)
        })?;
        self.saved_at = Some(checkpoint.position.step);
        self.position = checkpoint.position;
        (self.best, self.method_state) = (checkpoint.best, checkpoint.method_state);
        (self.pending, self.torn) = (None, false);
        Ok(())
    }
}
