//! `sparta-cli plan` without data: the memory of a model of which no more than `config.json` need be there.

use crate::args::RunArgs;
use crate::output::Output;
use crate::{devices, hub};
use sparta_core::plugin::PluginSet;
use sparta_core::run::memory::{self, MemoryRequest};
use sparta_core::{Error, Result};
use sparta_plugin::method::Options;

/// Classes where no task is named.
const CLASSES: usize = 2;

pub fn plan(args: RunArgs, method_options: Options, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let model = args
        .model
        .ok_or_else(|| Error::Usage("--model is missing: a model directory, or the config.json of a model".into()))?;
    let classes = match &args.task {
        Some(task) => plugins.task(task)?.1.labels.len(),
        None => CLASSES,
    };
    let request = MemoryRequest {
        model: hub::model(model, args.revision.as_deref())?,
        method: args.method,
        method_options,
        classes,
        batch_size: args.batch_size,
        micro_batch_tokens: args.micro_batch_tokens,
        max_length: args.max_length,
        dropout: args.dropout,
        recompute: args.recompute,
        precision: args.precision,
        optimizer: args.optimizer.choice(),
    };
    let devices = devices::find(plugins);
    let plan = memory::plan(&request, plugins, devices.select(&args.device.device)?)?;
    output.say(&plan)?;
    output.say("note       no --data was given, so this is about memory alone")?;
    output.result(&plan)
}
