//! Runs of several processes: those that a launcher has started, or threads of this one, each with its own device.

use crate::{devices, output};
use sparta_core::job::{Observer, RunConfig, RunResult, Silent};
use sparta_core::plugin::PluginSet;
use sparta_core::run::{Start, run_together};
use sparta_core::team::{Team, threads};
use sparta_core::{Error, Result};
use std::path::PathBuf;

/// The processes that a launcher started; only rank 0 prints from now on. Without a launcher, this process alone.
///
/// Errors: the processes cannot connect.
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

/// Errors: a launcher started several processes for a command that runs in one.
pub fn refuse(command: &str, plugins: &PluginSet) -> Result<()> {
    for plugin in plugins.communicators() {
        if let Some(launch) = plugin.launched().map_err(|error| Error::Plugin(error.0))? {
            return Err(Error::Usage(format!(
                "{} has started {} processes, but `{command}` runs in one: start it without a launcher; `run` is for \
                 several",
                launch.launcher, launch.size
            )));
        }
    }
    Ok(())
}

/// Runs `work`, which downloads files, first in one process of each machine, then in the others, which find the files.
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

/// The run directory, as rank 0 chose it.
pub fn directory(team: &mut Team, own: PathBuf) -> Result<PathBuf> {
    let text = team.share("the run directory's name", own.to_string_lossy().into_owned().into_bytes())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&text).into_owned()))
}

/// A run on several devices of this machine, with a thread of this process for each.
pub fn run_on(
    wanted: &[String],
    config: &RunConfig,
    plugins: &PluginSet,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<RunResult> {
    let one = |device: &str, observer: &mut dyn Observer, team: &mut Team| {
        let devices = devices::find(plugins);
        // Errors about a name list the devices.
        let open = || devices.open(devices.select(device)?);
        run_together(config, plugins, &open, start, observer, team)
    };
    let mut teams: Vec<Team> = threads(wanted.len()).into_iter().map(Team::meet).collect();
    std::thread::scope(|scope| {
        for (device, mut team) in wanted[1..].iter().zip(teams.drain(1..)) {
            // Rank 0 reports the errors of all.
            scope.spawn(move || drop(one(device, &mut Silent, &mut team)));
        }
        one(&wanted[0], observer, &mut teams[0])
    })
}
