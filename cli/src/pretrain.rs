//! `sparta-cli pretrain`.

use crate::args::PretrainArgs;
use crate::output::Output;
use crate::progress::{Progress, handle_interrupts};
use crate::{devices, hub};
use sparta_core::Result;
use sparta_core::job::Stopped;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, PretrainConfig, Start};
use sparta_plugin::method::Options;

pub fn pretrain(args: PretrainArgs, method_options: Options, plugins: &PluginSet) -> Result<Stopped> {
    let output = Output::new(args.device.json);
    let start = if args.resume { Start::Resume } else { Start::New };
    let config = PretrainConfig {
        model: args.model,
        // Absolute, so that the run can be evaluated from any directory.
        data: hub::absolute(&args.data)?,
        method: args.method,
        method_options: method_options.into_iter().collect(),
        epochs: args.epochs,
        max_steps: args.max_steps,
        batch_tokens: args.batch_tokens,
        micro_batch_tokens: args.micro_batch_tokens,
        lr: args.lr,
        warmup: args.warmup,
        weight_decay: args.weight_decay,
        optimizer: args.optimizer,
        max_length: args.max_length,
        eval_interval: args.eval_interval,
        checkpoint_interval: args.checkpoint_interval,
        seed: args.seed,
        precision: args.precision,
        no_autotune: args.no_autotune,
        dtype: args.dtype.into(),
        out: args.out,
    };
    handle_interrupts();
    let mut progress = Progress::new(output);
    let open = || devices::open(&args.device.device, plugins);
    let result = run::pretrain(&config, plugins, &open, start, &mut progress);
    progress.finish();
    let result = result?;
    output.say(format!(
        "\ndone       {} steps, {} documents, {} tokens",
        result.steps, result.documents, result.tokens
    ))?;
    output.say(format!("loss       {:.4} nats per token", result.loss))?;
    if let Some(perplexity) = result.dev.as_ref().and_then(|dev| dev.scores.get("perplexity")) {
        output.say(format!("held out   perplexity {perplexity:.2}"))?;
    }
    output.say(format!("saved      {}, the model in {}", result.out.display(), result.model.display()))?;
    output.result(&result)?;
    Ok(result.stopped)
}
