//! `sparta-cli pretrain`.

use crate::args::PretrainArgs;
use crate::devices;
use crate::output::Output;
use crate::progress::Progress;
use sparta_core::Result;
use sparta_core::job::Observer;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, PretrainConfig};

pub fn pretrain(args: PretrainArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let device = devices::open(&args.device.device, plugins)?;
    let config = PretrainConfig {
        model: args.model,
        text: args.text,
        epochs: args.epochs,
        batch_tokens: args.batch_tokens,
        lr: args.lr,
        warmup: args.warmup,
        weight_decay: args.weight_decay,
        optimizer: args.optimizer.choice(),
        max_length: args.max_length,
        seed: args.seed,
        precision: args.precision,
        dtype: args.dtype.into(),
        out: args.out,
    };
    let mut progress = Progress::new(output);
    let result = run::pretrain(&config, plugins, device, |report| progress.step(report));
    progress.finish();
    let result = result?;
    output.say(format!(
        "\ndone       {} steps, {} documents, {} tokens",
        result.steps, result.documents, result.tokens
    ))?;
    output.say(format!("loss       {:.4} nats per token", result.loss))?;
    output.say(format!("saved      {}", result.out.display()))?;
    output.result(&result)
}
