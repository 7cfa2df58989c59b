//! `sparta-cli run` and `sparta-cli plan`.

use crate::args::{RunArgs, WatchArgs};
use crate::output::{Output, bytes};
use crate::parse::{Job, PluginOptions};
use crate::progress::metrics;
use crate::watch::Watch;
use crate::{devices, hub, memory, together};
use sparta_core::assumed;
use sparta_core::device::listed;
use sparta_core::job::{RunConfig, RunResult, Sources, Stopped, thousands};
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, Start};
use sparta_core::team::Team;
use sparta_core::{Error, Result, files, report};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Trains, as one of the processes that a launcher has started if there are several.
pub fn run(job: Job, watch: &WatchArgs, plugins: &PluginSet) -> Result<Stopped> {
    let mut team = together::team(plugins)?;
    let result = run_in(job, watch, plugins, &mut team).map_err(|error| team.fail(error));
    match team.leads() {
        true => result,
        // Only rank 0 reports a failure: a launcher kills it as soon as another process exits with an error.
        false => Ok(Stopped::Completed),
    }
}

fn run_in(job: Job, watch: &WatchArgs, plugins: &PluginSet, team: &mut Team) -> Result<Stopped> {
    let Job { args, options, resumed } = job;
    let output = Output::new(args.device.json);
    let devices = devices::find(plugins);
    let wanted = listed(&args.device.device);
    let device = devices.select_for(&args.device.device, team.local_rank())?.clone();
    let (mut config, start) = match resumed {
        Some(config) => (config, Start::Resume),
        None => (together::in_turn(team, || config(args, options, plugins))?, Start::New),
    };
    let _claim = match config.out.as_os_str().is_empty() && team.leads() {
        true => Some(Claim::new(&mut config)?),
        false => None,
    };
    config.out = together::directory(team, config.out)?;
    if let Some(file) = &watch.profile {
        let (profile, exchange) = run::profile(&config, plugins, devices.open(&device)?, team)?;
        output.say(&profile)?;
        if let Some(exchange) = exchange {
            output.say(format!("exchange of a micro-batch's gradients: {exchange}"))?;
        }
        if team.leads() {
            std::fs::write(file, profile.trace()).map_err(Error::io(file))?;
        }
    }
    let unwatched = WatchArgs { until_eof: watch.until_eof, ..WatchArgs::default() };
    let watch = if team.leads() { watch } else { &unwatched };
    let mut watch = Watch::new(output, watch, &config.out)?;
    let result = match team.size() == 1 && wanted.len() > 1 {
        true => together::run_on(&wanted, &config, plugins, start, &mut watch),
        false => run::run_together(&config, plugins, &|| devices.open(&device), start, &mut watch, team),
    };
    watch.finish();
    let result = result?;
    output.say(summary(&result))?;
    output.result(&result)?;
    Ok(result.stopped)
}

/// Prints what a run would do, even if it does not fit the device.
///
/// Errors: a run that cannot be planned; after printing the plan, one that does not fit.
pub fn plan(job: Job, assume: Option<&str>, plugins: &PluginSet) -> Result<()> {
    let Job { args, options, resumed } = job;
    let device = match assume {
        Some(limits) => assumed::device(limits)?,
        None => devices::find(plugins).select(&args.device.device)?.clone(),
    };
    if args.sources.data.is_none() && resumed.is_none() {
        return memory::plan(args, &device, options.method, plugins);
    }
    let output = Output::new(args.device.json);
    let config = match resumed {
        Some(config) => config,
        None => config(args, options, plugins)?,
    };
    let plan = run::plan(&config, plugins, &device)?;
    output.say(&plan)?;
    output.result(&plan)?;
    plan.check_fit()
}

/// The run's configuration from the command line, with model and data downloaded if necessary.
///
/// Errors: no model, data or task; a download that fails.
pub fn config(args: RunArgs, options: PluginOptions, plugins: &PluginSet) -> Result<RunConfig> {
    let (instruct, no_template) = (args.sources.instruct()?, args.sources.instruct == Some(false));
    let Sources { model, revision, task, data, method, .. } = args.sources;
    let model = model.ok_or_else(|| {
        Error::Usage("--model is missing: name the directory of the model that the data is for".into())
    })?;
    let data = data.ok_or_else(|| {
        Error::Usage("--data is missing: name the directory of the task's files, or leave out --model, too".into())
    })?;
    let task = task.ok_or_else(|| {
        let known = plugins.tasks().iter().flat_map(|plugin| plugin.info().tasks.iter().map(|task| &*task.id));
        Error::Usage(format!("--task is missing: expected one of {}", known.collect::<Vec<_>>().join(", ")))
    })?;
    let model = hub::model(model, revision.as_deref())?;
    let data = hub::data(data, &task)?;
    // Absolute, so that the run can be resumed from anywhere.
    let (model, data) = (hub::absolute(&model)?, hub::absolute(&data)?);
    let out = args.out.unwrap_or_default();
    let PluginOptions { method: method_options, task: task_options } = options;
    Ok(RunConfig { model, task, data, method, method_options, task_options, instruct, no_template, out, ..args.config })
}

/// The default directory of a run: `runs/TASK-METHOD-N` with the first free N. It is created at the start, so that no
/// other run takes it, and removed at the end if it is still empty.
struct Claim(PathBuf);

impl Claim {
    fn new(config: &mut RunConfig) -> Result<Claim> {
        let parent = Path::new("runs");
        files::create_dirs(parent).map_err(Error::io(parent))?;
        for number in 1.. {
            let path = parent.join(format!("{}-{}-{number}", config.task, config.method));
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                created => {
                    created.map_err(Error::io(&path))?;
                    config.out = path.clone();
                    return Ok(Claim(path));
                }
            }
        }
        Err(Error::Usage("no free number for a new run; give --out".into()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Fails, as it should, if the directory is not empty.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The result as text.
fn summary(result: &RunResult) -> String {
    let stopped = match result.stopped {
        Stopped::Completed => format!("{} steps", result.steps),
        Stopped::EarlyStopping => match result.best_step {
            Some(best) => format!("stopped early after {} steps, kept step {best}", result.steps),
            None => format!("stopped early after {} steps", result.steps),
        },
        Stopped::Interrupted => format!("interrupted after {} steps; everything is saved", result.steps),
    };
    let mut lines = vec![format!("\ndone       {stopped} in {:.1} s", result.training_seconds)];
    for (name, split) in [("dev", &result.dev), ("test", &result.test)] {
        lines.extend(split.as_ref().map(|found| format!("{name:<10} {}", metrics(found))));
    }
    let trainable = &result.trainable;
    lines.push(format!(
        "trained    {} + {} of {} parameters",
        thousands(trainable.body),
        thousands(trainable.head),
        thousands(result.parameters)
    ));
    let resident = result.peak_resident.map(|n| format!(", process peak {}", bytes(n))).unwrap_or_default();
    lines.extend(result.visible.map(|share| {
        format!("visible    {:.1} % of the chosen weights differ from the model's as stored", 100.0 * share)
    }));
    lines.push(format!("speed      {:.0} tokens/s", result.tokens_per_second));
    lines.push(format!(
        "memory     {} on the device (planned {}){resident}",
        bytes(result.device_memory),
        bytes(result.planned_memory)
    ));
    lines.extend(result.exchanged.map(|spent| format!("exchange   {spent}")));
    lines.extend(result.merge_check.as_ref().map(|check| format!("merged     {check}")));
    let report = if result.out.join(report::FILE).is_file() { ", with report.html" } else { "" };
    lines.push(format!("saved      {}{report}", result.out.display()));
    lines.join("\n")
}
