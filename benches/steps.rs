//! Whole training steps on a synthetic model, as one JSON line:
//! `cargo bench --workspace --bench steps -- --shape 15M --batch 16 --tokens 64 --method sparta --density 0.05`.

use clap::Parser;
use serde::Serialize;
use sparta_benches::model::Weights;
use sparta_benches::{Case, OnCpu, Result, Shape, machine, model, training};
use sparta_model::Precision;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    /// 15M, 110M, SmolLM2-135M, gemma-2b or hidden,layers,heads,kv_heads,intermediate,vocab
    #[arg(long, default_value = "15M", value_parser = Shape::parse)]
    shape: Shape,
    /// Sequences of a batch
    #[arg(long, default_value = "16")]
    batch: usize,
    /// Tokens of each sequence
    #[arg(long, default_value = "64")]
    tokens: usize,
    /// full, lora (r 8 on q and v), lora-all (on all projections), head (with a forward pass in each step) or sparta
    #[arg(long, default_value = "sparta")]
    method: String,
    /// The share of the scalars of all layers and norms that SpaRTA trains
    #[arg(long, default_value = "0.05")]
    density: f64,
    /// The density is the share of all parameters, embeddings included
    #[arg(long)]
    of_all: bool,
    /// Type of the weights on disk
    #[arg(long, default_value = "f32")]
    weights: Weights,
    /// Type of activations and products: f32 or bf16
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// Recompute each layer's activations in the backward pass
    #[arg(long)]
    recompute: bool,
    /// cpu, or a device of wgpu or cuda
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of the CPU [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Choose kernels by rules, without measuring which are fastest
    #[arg(long)]
    no_autotune: bool,
    /// Seconds to measure for
    #[arg(long, default_value = "10")]
    seconds: f64,
    /// Steps to measure at least
    #[arg(long, default_value = "7")]
    at_least: usize,
    /// Print the time of each op in a step to stderr, and write a timeline for chrome://tracing to this file
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The line of a cell.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    measured: OnCpu,
    device: String,
    trained: u64,
    arena_mib: f64,
    /// The most that the backend ever allocated on the device.
    device_peak_mib: Option<f64>,
    /// The peak memory of the process above that at its start.
    peak_above_start_mib: Option<f64>,
    start_to_first_step_s: f64,
    /// The number of choices among kernels that were made by measuring, now or in an earlier process.
    tuned: Option<usize>,
}

fn main() -> Result<()> {
    if model::write_model_if_asked()? {
        return Ok(());
    }
    machine::reset_peak();
    let resident = machine::resident();
    let args = Args::parse();
    let of_layers = if args.of_all { 1.0 / model::share_of_layers(&args.shape)? } else { 1.0 };
    let case = Case {
        shape: args.shape,
        weights: args.weights,
        quantize: None,
        batch: args.batch,
        tokens: args.tokens,
        method: args.method,
        density: args.density * of_layers,
        recompute: args.recompute,
        precision: args.precision,
        device: args.device,
        threads: args.threads,
        autotune: !args.no_autotune,
    };
    model::directory(&case.shape, case.weights)?;
    let start = Instant::now();
    let mut opened = case.open(args.profile.is_some())?;
    opened.bench.step()?;
    let start_to_first_step_s = start.elapsed().as_secs_f64();
    let measured = opened.measure(Duration::from_secs_f64(args.seconds), args.at_least)?;
    let line = Line {
        measured,
        device: opened.bench.session.tensors().device().name,
        trained: opened.trained,
        arena_mib: training::mib(opened.arena as u64),
        device_peak_mib: opened.bench.session.tensors().memory_use().map(|used| training::mib(used.peak)),
        peak_above_start_mib: training::peak_above(resident),
        start_to_first_step_s,
        tuned: opened.bench.session.tensors().tuned().map(|tuned| tuned.choices.len()),
    };
    println!("{}", serde_json::to_string(&line)?);
    if let Some(file) = args.profile {
        let profile = opened.profile()?;
        eprint!("{profile}");
        std::fs::write(&file, profile.trace())?;
    }
    Ok(())
}
