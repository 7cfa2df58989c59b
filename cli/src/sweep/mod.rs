//! `sparta-cli sweep`: many runs, and the comparison of the best.

mod children;
mod definition;
mod space;
mod state;
mod table;

use crate::args::Command;
use crate::output::{self, Output};
use crate::parse::{self, Stop};
use crate::progress::{handle_interrupts, interrupted};
use children::Runner;
use clap::Args;
use definition::{Definition, Random};
use serde::Serialize;
use space::Combination;
use sparta_core::job::Sources;
use sparta_core::job::config::{at_least, explanation};
use sparta_core::plugin::PluginSet;
use sparta_core::weights::atomic_write;
use sparta_core::{Error, Result, files, report};
use state::{Job, State};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use table::Comparison;
use toml::Value;

#[derive(Args)]
pub struct SweepArgs {
    /// What to try, in TOML: [base] and [grid] with the options of `run`, where a list tries each of its values; or
    /// paper-table, the rows of the paper's tables; or methods, every method found, at equal numbers of trained values
    #[arg(value_name = "FILE.toml")]
    definition: PathBuf,
    /// Directory for the runs and their comparison; finished runs there are not repeated
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Model of all runs
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// Data of all runs
    #[arg(long, value_name = "DIR|NAME")]
    data: Option<String>,
    /// Tasks, each a column of the comparison
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    task: Option<Vec<String>>,
    /// Replace the value of an option by another one, or a list; ROW/KEY=VALUE and TASK/KEY=VALUE change one row or one
    /// task; may be repeated
    #[arg(long, value_name = "[NAME/]KEY=VALUE")]
    set: Vec<String>,
    /// Draw N combinations for each grid table and task, instead of trying all
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    samples: Option<usize>,
    /// Devices, one run at a time on each
    #[arg(long, value_name = "D,D,...", value_delimiter = ',', default_value = "auto")]
    device: Vec<String>,
    /// Number of concurrent runs [default: one per device]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    jobs: Option<usize>,
    /// Repeat failed runs
    #[arg(long)]
    retry: bool,
    /// List the runs and their states without running anything
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object as the last line on stdout, and everything else on stderr
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary<'a> {
    out: &'a Path,
    finished: usize,
    failed: usize,
    stopped_early: usize,
    not_finished: usize,
    /// Directories of the runs in the comparison.
    best: Vec<&'a Path>,
}

pub fn sweep(args: SweepArgs, plugin_options: Vec<String>, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.json);
    let mut definition = definition(&args)?;
    let missing = definition.leave_out(|method| plugins.method(method).is_ok());
    if !missing.is_empty() {
        output.say(format!("not found, and left out: {}; see --plugin", missing.join(", ")))?;
    }
    let combinations = definition.combinations()?;
    check_tasks(&definition, args.task.is_some(), plugins)?;
    let jobs =
        combinations.iter().map(|one| job(one, &args.out, &plugin_options, plugins)).collect::<Result<Vec<Job>>>()?;
    if args.dry_run {
        return list(output, &jobs);
    }
    let _lock = lock(&args.out)?;
    handle_interrupts();
    let count = args.jobs.unwrap_or(args.device.len());
    let runner = Runner {
        jobs: &jobs,
        output,
        devices: args.device.iter().cycle().take(count).cloned().collect(),
        plugin_options,
        early_stop: definition.early_stop,
        retry: args.retry,
    };
    runner.run()?;
    compare(output, &args.out, &jobs)
}

/// The definition, with the changes made on the command line.
fn definition(args: &SweepArgs) -> Result<Definition> {
    let mut definition = Definition::read(&args.definition)?;
    let text = |text: &String| Value::String(text.clone());
    if let Some(model) = &args.model {
        definition.set("model", text(model));
    }
    if let Some(data) = &args.data {
        definition.set("data", text(data));
    }
    if let Some(tasks) = &args.task {
        definition.set("task", Value::Array(tasks.iter().map(text).collect()));
    }
    args.set.iter().try_for_each(|set| definition.set_text(set))?;
    if let Some(samples) = args.samples {
        definition.random = Some(Random { samples, seed: definition.random.map_or(0, |random| random.seed) });
    }
    Ok(definition)
}

/// Errors: a [task.ID] that is not a task, or that no run has, unless --task has chosen `some`.
fn check_tasks(definition: &Definition, some: bool, plugins: &PluginSet) -> Result<()> {
    for task in definition.idle_tasks() {
        plugins.task(task).map_err(|e| Error::Usage(format!("[task.{task}]: {e}")))?;
        if !some {
            let given = definition.given_tasks().into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::Usage(format!(
                "[task.{task}]: no run has this task; the tasks of the runs are: {given}"
            )));
        }
    }
    Ok(())
}

/// Checks the options as `run` would, so that a mistake is reported before hours of other runs.
fn job(one: &Combination, out: &Path, plugin_options: &[String], plugins: &PluginSet) -> Result<Job> {
    let options = one.options.iter().map(|(key, value)| format!("--{key}={value}"));
    let fail = |what: String| Error::Usage(format!("a run with {}: {what}", join(options.clone())));
    let start = ["sparta-cli".to_owned()].into_iter().chain(plugin_options.iter().cloned()).chain(["run".to_owned()]);
    let parsed = parse::parse(start.chain(options.clone()).collect()).map_err(|stop| match stop {
        Stop::Clap(error) => fail(explanation(&error)),
        Stop::Error(error) => fail(error.to_string()),
    })?;
    let Command::Run { args, .. } = parsed.cli.command else {
        return Err(fail("these are not the options of a run".into()));
    };
    let Sources { model, data, task, method, .. } = args.sources;
    let task = task.ok_or_else(|| fail("there is no task; give --task, or `task` in [base]".into()))?;
    if model.is_none() || data.is_none() {
        return Err(fail("give both --model and --data, or neither".into()));
    }
    let name = format!("{task}-{}-{}", method, one.hash());
    Ok(Job {
        directory: out.join(&name),
        name,
        row: one.row.clone().unwrap_or(method),
        primary: plugins.task(&task)?.1.primary,
        task,
        setting: one.setting(),
        options: one.options.clone(),
    })
}

fn join(options: impl Iterator<Item = String>) -> String {
    options.collect::<Vec<_>>().join(" ")
}

fn list(output: Output, jobs: &[Job]) -> Result<()> {
    let mut rows = Vec::new();
    for job in jobs {
        let state = match job.state()? {
            State::New => "to run".to_owned(),
            State::Begun { checkpoint: true } => "to resume".to_owned(),
            State::Begun { checkpoint: false } => "to run again".to_owned(),
            State::Finished(_) => "finished".to_owned(),
            State::Failed(message) => format!("failed: {message}"),
            State::StoppedEarly(message) => format!("stopped early: {message}"),
        };
        rows.push(vec![job.name.clone(), job.row.clone(), job.task.clone(), job.setting.clone(), state]);
    }
    output.say(output::table(&["run", "method", "task", "setting", "state"], &rows))?;
    output.say(format!("\n{} runs", jobs.len()))?;
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    output.result(&names)
}

/// Keeps a second sweep out of the directory while this process lives.
fn lock(out: &Path) -> Result<File> {
    files::create_dirs(out).map_err(Error::io(out))?;
    let path = out.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::Usage(format!("{}: another sweep is running here; give another --out", out.display())))
        }
        Err(fs::TryLockError::Error(error)) => Err(Error::io(path)(error)),
    }
}

/// Writes the comparison in all its formats.
///
/// Errors: a file that cannot be written; no run has a result, although none was interrupted.
fn compare(output: Output, out: &Path, jobs: &[Job]) -> Result<()> {
    let comparison = Comparison::read(jobs)?;
    let markdown = comparison.markdown();
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        atomic_write(&path, |file| file.write_all(bytes).map_err(Error::io(&path)))
    };
    write("comparison.md", format!("{markdown}\n").as_bytes())?;
    write("comparison.csv", &comparison.csv()?)?;
    let best = comparison.best();
    let best: Vec<PathBuf> = best.iter().flat_map(|one| one.jobs()).map(|job| job.directory.clone()).collect();
    let mut written = vec!["comparison.md", "comparison.csv"];
    if !best.is_empty() {
        match report::write(&best, &out.join(report::FILE)) {
            Ok(()) => written.push(report::FILE),
            Err(error) => output.say(format!("warning: there is no {}: {error}", report::FILE))?,
        }
    }
    let [finished, failed, stopped_early, not_finished] = comparison.counts();
    output.say(format!("\n{markdown}\n"))?;
    output.say(format!(
        "{finished} finished, {failed} failed, {stopped_early} stopped early, {not_finished} unfinished"
    ))?;
    output.say(format!("written    {} in {}", written.join(", "), out.display()))?;
    if not_finished > 0 && interrupted() {
        output.say("the same command continues with the rest")?;
    }
    let best = best.iter().map(PathBuf::as_path).collect();
    output.result(&Summary { out, finished, failed, stopped_early, not_finished, best })?;
    match finished {
        0 if failed > 0 => Err(Error::Training(format!("none of {} runs has a result", jobs.len()))),
        _ => Ok(()),
    }
}
