//! `sparta-cli plan` without data: the memory of a model, for which its `config.json` is enough.

use crate::args::RunArgs;
use crate::hub;
use crate::output::Output;
use sparta_core::plugin::PluginSet;
use sparta_core::run::memory::{self, MemoryRequest};
use sparta_core::run::objective_of;
use sparta_core::train::objective::Classification;
use sparta_core::{Error, Result};
use sparta_graph::DeviceInfo;
use sparta_plugin::method::Options;
use sparta_plugin::task::Target;
use std::sync::Arc;

/// Number of classes if no task is named, or one that finds its labels in its data.
const CLASSES: usize = 2;

pub fn plan(args: RunArgs, info: &DeviceInfo, method_options: Options, plugins: &PluginSet) -> Result<()> {
    let RunArgs { sources, config, device, .. } = args;
    let output = Output::new(device.json);
    let model = sources
        .model
        .ok_or_else(|| Error::Usage("--model is missing: give a model directory, or a model's config.json".into()))?;
    let objective = match &sources.task {
        Some(task) => match plugins.task(task)?.1 {
            found if found.labels.is_empty() && found.target() == Target::Class => {
                Arc::new(Classification { classes: CLASSES })
            }
            described => objective_of(&described),
        },
        None => Arc::new(Classification { classes: CLASSES }),
    };
    let request = MemoryRequest {
        model: hub::model(model, sources.revision.as_deref())?,
        method: sources.method,
        method_options,
        objective,
        batch_size: config.batch_size,
        micro_batch_tokens: config.micro_batch_tokens,
        max_length: config.max_length,
        dropout: config.dropout,
        recompute: config.recompute,
        optimization: config.optimization()?,
        precision: config.precision,
        residual: config.residual,
        quantize: config.quantize,
    };
    let plan = memory::plan(&request, plugins, info)?;
    output.say(&plan)?;
    output.say("note       no --data was given, so only the memory is planned")?;
    output.result(&plan)?;
    plan.check_fit()
}
