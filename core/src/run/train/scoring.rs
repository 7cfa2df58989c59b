//! The stage of a run before training: scores, and the elements they choose.

use super::OpenDevice;
use crate::job::Observer;
use crate::run::directory::RunDirectory;
use crate::run::prepare::Prepared;
use crate::run::score::store;
use crate::team::Team;
use crate::train::schedule::learning_rate;
use crate::train::score::scores;
use crate::train::{Batch, Session};
use crate::{Error, Result};
use sparta_graph::Backend;
use sparta_plugin::method::Score;

/// Computes the scores on the run's first batches, and chooses the elements, which are stored in the run directory.
/// Returns an open device.
///
/// Errors: scores that are not finite; a device that fails; a request to stop.
pub fn choose(
    run: &mut Prepared,
    directory: &RunDirectory,
    device: Box<dyn Backend>,
    open: OpenDevice,
    observer: &mut dyn Observer,
    team: &mut Team,
) -> Result<Box<dyn Backend>> {
    let scorings = std::mem::take(&mut run.scorings);
    if scorings.is_empty() {
        return Ok(device);
    }
    let mut device = Some(device);
    for scoring in scorings {
        let score = scoring.score;
        observer.message(&format!("scoring {}", scoring.plan));
        let own = device.take().map_or_else(open, Ok)?;
        let mut session = Session::open(own, &run.weights, scoring.setup, &scoring.arena)?;
        let batches = first_batches(run, score.count() as usize);
        let (mut done, total) = (0, batches.iter().map(Vec::len).sum());
        for (step, examples) in batches.iter().enumerate() {
            team.ask_to_stop(observer.stop_requested());
            let batches = run.micro_batches(examples, scoring.micro_batch_tokens)?;
            one_step(run, &mut session, score, (step, &batches), team)?;
            done += examples.len();
            observer.eval_progress("scores", done, total);
            if team.stops(observer.stop_requested()) {
                return Err(Error::Training(
                    "stopped before the first step, while elements were scored: nothing is trained".into(),
                ));
            }
        }
        let weights = &run.weights;
        run.setup.adaptation.choose(score, |parameter| scores(&mut session, weights, score, parameter))?;
    }
    if team.leads() {
        store(&run.config, &run.setup.adaptation)?;
    }
    let device = open()?;
    run.chosen(&device.info())?;
    directory.describe(run)?;
    Ok(device)
}

/// The examples of the run's first `count` batches; if the epochs have fewer, further epochs follow.
fn first_batches(run: &Prepared, count: usize) -> Vec<Vec<usize>> {
    let (mut batches, mut epoch) = (Vec::new(), 0);
    while batches.len() < count {
        let order = run.epochs.order(epoch);
        batches.extend(run.epochs.steps(&order).into_iter().map(|step| order[step].to_vec()));
        epoch += 1;
    }
    batches.truncate(count);
    batches
}

fn one_step(
    run: &Prepared,
    session: &mut Session,
    score: Score,
    (step, batches): (usize, &[Batch]),
    team: &mut Team,
) -> Result<()> {
    let config = &run.config;
    let lr = learning_rate(config.schedule, run.lr, config.warmup, step, score.count() as usize);
    let turn = team.turn();
    let submitted = session.submit_shared(batches, lr, team)?;
    let output = session.settle(submitted)?;
    if team.turn() == turn {
        team.assemble("a step of the scores")?;
    }
    match output.clip_coef >= 0.0 {
        true => Ok(()),
        false => Err(Error::Training(format!(
            "batch {} of the scores has the loss {} and a gradient of norm {}, which must be finite; lower --lr",
            step + 1,
            output.loss,
            output.grad_norm
        ))),
    }
}
