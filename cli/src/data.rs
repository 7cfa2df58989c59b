//! `sparta-cli data show`.

use crate::args::ShowArgs;
use crate::output::{self, Output};
use crate::parse::Job;
use crate::train::config;
use sparta_core::Result;
use sparta_core::job::thousands;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, ShownData, ShownExample, ShownSplit};

/// Prints the examples that a run with the same options would see, and a summary of each split.
pub fn show(job: Job, shown: &ShowArgs, plugins: &PluginSet) -> Result<()> {
    let Job { args, options, resumed } = job;
    let json = args.device.json;
    let config = match resumed {
        Some(config) => config,
        None => config(args, options, plugins)?,
    };
    let mut print = |example: ShownExample| match json {
        true => output::json_line(&example),
        false => print_example(&example),
    };
    let data = run::show(&config, plugins, shown.split.as_deref(), shown.first, &mut print)?;
    match json {
        true => output::json_line(&data),
        false => Output::new(false).say(summary(&data)),
    }
}

fn print_example(example: &ShownExample) -> Result<()> {
    let ShownExample { split, number, tokens, trained, label, left_out, cut_from, .. } = example;
    let count = thousands(tokens.len() as u64);
    let what = match label {
        Some(label) => format!("label {label}"),
        None => format!("{} trained on", thousands(trained.iter().filter(|trained| **trained).count() as u64)),
    };
    let cut = cut_from.map(|from| format!(", cut from {} tokens", thousands(from as u64))).unwrap_or_default();
    let left_out = left_out.as_ref().map(|why| format!(", left out: {why}")).unwrap_or_default();
    output::print(format!("{split} {number}: {count} tokens, {what}{cut}{left_out}"))?;
    output::marked(tokens.iter().map(String::as_str).zip(trained.iter().copied()))
}

fn summary(data: &ShownData) -> String {
    let split = |found: &ShownSplit| {
        let [examples, tokens, trained, cut, too_long, untrained] =
            [found.examples, found.tokens, found.trained, found.cut, found.too_long, found.untrained]
                .map(|n| thousands(n as u64));
        // Examples with a label have no tokens to learn.
        let learned = if found.trained == 0 { String::new() } else { format!(", {trained} trained on") };
        let [shortest, middle, longest] = found.lengths.map(|n| thousands(n as u64));
        let mut lines = vec![format!(
            "{:<10} {examples} examples, {tokens} tokens{learned}, {shortest} to {longest} per example (half have \
             {middle} or more): {}",
            found.split, found.origin
        )];
        let more = [
            (found.too_long, format!("{too_long} of more than {} tokens are left out", data.max_length)),
            (found.untrained, format!("{untrained} are left out, as they have no tokens to train on")),
            (found.cut, format!("{cut} are cut")),
        ];
        lines.extend(more.into_iter().filter(|(count, _)| *count > 0).map(|(_, line)| format!("           {line}")));
        lines.join("\n")
    };
    let notes = data.notes.iter().map(|note| format!("note       {note}"));
    data.splits.iter().map(split).chain(notes).collect::<Vec<_>>().join("\n")
}
