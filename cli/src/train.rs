//! `sparta-cli run` and `sparta-cli plan`.

use crate::args::{RunArgs, WatchArgs};
use crate::output::{Output, bytes};
use crate::progress::metrics;
use crate::watch::Watch;
use crate::{devices, hub, memory};
use sparta_core::job::{RunConfig, RunResult, Stopped, thousands};
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, Start};
use sparta_core::text::Instruct;
use sparta_core::{Error, Result};
use sparta_plugin::method::Options;
use std::path::{Path, PathBuf};

pub fn run(args: RunArgs, watch: &WatchArgs, method_options: Options, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let devices = devices::find(plugins);
    let device = devices.select(&args.device.device)?.clone();
    let start = if args.resume.is_some() { Start::Resume } else { Start::New };
    let config = config(args, method_options, plugins)?;
    if let Some(file) = &watch.profile {
        let profile = run::profile(&config, plugins, devices.open(&device)?)?;
        output.say(&profile)?;
        std::fs::write(file, profile.trace()).map_err(Error::io(file))?;
    }
    let mut watch = Watch::new(output, watch, &config.out, plugins.task(&config.task)?.1.primary)?;
    let result = run::run(&config, plugins, &|| devices.open(&device), start, &mut watch);
    watch.finish();
    let result = result?;
    output.say(summary(&result))?;
    output.result(&result)
}

pub fn plan(args: RunArgs, method_options: Options, plugins: &PluginSet) -> Result<()> {
    if args.data.is_none() && args.resume.is_none() {
        return memory::plan(args, method_options, plugins);
    }
    let output = Output::new(args.device.json);
    let devices = devices::find(plugins);
    let device = devices.select(&args.device.device)?.clone();
    let plan = run::plan(&config(args, method_options, plugins)?, plugins, &device)?;
    output.say(&plan)?;
    output.result(&plan)
}

fn config(args: RunArgs, method_options: Options, plugins: &PluginSet) -> Result<RunConfig> {
    if let Some(run) = &args.resume {
        let stored = RunConfig::of_run(run)?;
        return Ok(RunConfig {
            epochs: args.epochs.unwrap_or(stored.epochs),
            max_steps: args.max_steps.or(stored.max_steps),
            skip_nonfinite: stored.skip_nonfinite || args.skip_nonfinite,
            ..stored
        });
    }
    let instruct = instruct(&args)?;
    let model = args.model.ok_or_else(|| {
        Error::Usage(
            "--model is missing: the directory of the model that the data is for, in the Hugging Face layout".into(),
        )
    })?;
    let data = args.data.ok_or_else(|| {
        Error::Usage("--data is missing: the directory with the task's files, or give no --model either".into())
    })?;
    let tasks = || {
        let ids: Vec<&str> = plugins.tasks().iter().flat_map(|p| p.info().tasks.iter().map(|t| &*t.id)).collect();
        ids.join(", ")
    };
    let task = args.task.ok_or_else(|| Error::Usage(format!("--task is missing: one of {}", tasks())))?;
    let model = hub::model(model, args.revision.as_deref())?;
    let data = hub::data(data, &task)?;
    let out = args.out.unwrap_or_else(|| free_directory(Path::new("runs"), &format!("{task}-{}", args.method)));
    Ok(RunConfig {
        model,
        task,
        data,
        method: args.method,
        method_options,
        epochs: args.epochs.unwrap_or(DEFAULT_EPOCHS),
        max_steps: args.max_steps,
        batch_size: args.batch_size,
        lr: args.lr,
        schedule: args.schedule,
        warmup: args.warmup,
        weight_decay: args.weight_decay,
        optimizer: args.optimizer.choice(),
        max_grad_norm: Some(args.max_grad_norm).filter(|&norm| norm > 0.0),
        dropout: args.dropout,
        seed: args.seed,
        eval_interval: args.eval_interval,
        patience: args.patience,
        min_delta: args.min_delta,
        max_length: args.max_length,
        max_train: args.max_train,
        max_dev: args.max_dev,
        max_test: args.max_test,
        head_init_std: args.head_init_std,
        instruct,
        micro_batch_tokens: args.micro_batch_tokens,
        recompute: args.recompute,
        precision: args.precision,
        checkpoint_interval: args.checkpoint_interval,
        keep_checkpoints: args.keep_checkpoints,
        skip_nonfinite: args.skip_nonfinite,
        out,
    })
}

/// Passes over the training data where none are asked for.
const DEFAULT_EPOCHS: usize = 3;

/// The prompt that is asked for, if any.
fn instruct(args: &RunArgs) -> Result<Option<Instruct>> {
    let given = args.prompt.is_some() || args.verbalizers.is_some();
    match args.instruct {
        Some(false) if given => {
            Err(Error::Usage("--prompt and --verbalizers are for --instruct, which is set to false".into()))
        }
        on if on.unwrap_or(given) => Ok(Some(Instruct::new(args.prompt.clone(), args.verbalizers.clone()))),
        _ => Ok(None),
    }
}

/// `parent/name-N` with the first N that is free.
fn free_directory(parent: &Path, name: &str) -> PathBuf {
    let mut number = 1;
    loop {
        let path = parent.join(format!("{name}-{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

/// The result for people.
fn summary(result: &RunResult) -> String {
    let stopped = match result.stopped {
        Stopped::Completed => format!("{} steps", result.steps),
        Stopped::EarlyStopping => match result.best_step {
            Some(best) => format!("stopped early after {} steps, kept step {best}", result.steps),
            None => format!("stopped early after {} steps", result.steps),
        },
        Stopped::Interrupted => format!("interrupted after {} steps; what was learned is saved", result.steps),
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
    lines.push(format!("speed      {:.0} tokens/s", result.tokens_per_second));
    lines.push(format!(
        "memory     {} on the device (planned {}){resident}",
        bytes(result.device_memory),
        bytes(result.planned_memory)
    ));
    lines.extend(result.merge_check.as_ref().map(|check| format!("merged     {check}")));
    lines.push(format!("saved      {}, with report.html", result.out.display()));
    lines.join("\n")
}
