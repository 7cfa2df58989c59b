//! Runs of several processes: those that a launcher has started, or threads of this one, each with a device of its own.

use crate::{devices, output};
use sparta_core::job::{EvalReport, Observer, RunConfig, RunPlan, RunResult, StepReport};
use sparta_core::plugin::PluginSet;
use sparta_core::run::{Start, run_together};
use sparta_core::team::{Team, threads};
use sparta_core::{Error, Result};
use std::path::PathBuf;

/// The processes that a launcher has started, of which only the leading one prints from now on; this one alone where there
/// was none.
///
/// Errors: they cannot be met.
pub fn team(plugins: &PluginSet) -> Result<Team> {
    let plugin_error = |error: sparta_plugin::Error| Error::Plugin(error.0);
    for plugin in plugins.communicators() {
        if plugin.launched().map_err(plugin_error)?.is_some() {
            let team = Team::meet(plugin.join().map_err(plugin_error)?);
            if !team.leads() {
                output::silence();
            }
            return Ok(team);
        }
    }
    Ok(Team::alone())
}

/// Errors: a launcher has started several processes for a command that is one.
pub fn refuse(command: &str, plugins: &PluginSet) -> Result<()> {
    for plugin in plugins.communicators() {
        if let Some(launch) = plugin.launched().map_err(|error| Error::Plugin(error.0))? {
            return Err(Error::Usage(format!(
                "{} has started {} processes, and `{command}` is for one: start it without a launcher; `run` is for several",
                launch.launcher, launch.size
            )));
        }
    }
    Ok(())
}

/// Does something that fetches files with one process of each machine, then with the others, which find them.
pub fn in_turn<T>(team: &mut Team, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let first = team.local_rank() == 0;
    if !first {
        team.assemble("downloads")?;
    }
    let done = work()?;
    if first {
        team.assemble("downloads")?;
    }
    Ok(done)
}

/// The run directory of the leading process, in all of them.
pub fn directory(team: &mut Team, own: PathBuf) -> Result<PathBuf> {
    let text = team.share("the run directory's name", own.to_string_lossy().into_owned().into_bytes())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&text).into_owned()))
}

/// A run on several devices of this machine, each with a thread that is one of its processes.
pub fn run_on(
    wanted: &[String],
    config: &RunConfig,
    plugins: &PluginSet,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<RunResult> {
    let one = |device: &str, observer: &mut dyn Observer, team: &mut Team| {
        let devices = devices::find(plugins);
        // What there is to say of a name is said of the list, too.
        let open = || devices.open(devices.select(device)?);
        run_together(config, plugins, &open, start, observer, team)
    };
    let mut teams: Vec<Team> = threads(wanted.len()).into_iter().map(Team::meet).collect();
    std::thread::scope(|scope| {
        for (device, mut team) in wanted[1..].iter().zip(teams.drain(1..)) {
            // The leading one has its errors.
            scope.spawn(move || drop(one(device, &mut Silent, &mut team)));
        }
        one(&wanted[0], observer, &mut teams[0])
    })
}

/// Of a process that only computes.
struct Silent;

impl Observer for Silent {
    fn plan(&mut self, _: &RunPlan) {}

    fn step(&mut self, _: &StepReport) {}

    fn eval(&mut self, _: &EvalReport) {}

    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}

    fn message(&mut self, _: &str) {}

    fn stop_requested(&self) -> bool {
        false
    }
}
