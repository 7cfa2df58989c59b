//! Time and memory of a training step on a quantized model beside the same model in bf16, in turns:
//! `cargo bench --workspace --bench quantized [-- --shape 110M --tokens 256 --batch 4 --device cpu]`.

use clap::Parser;
use sparta_benches::model::Weights;
use sparta_benches::{Case, Result, Shape, model, training::mib};
use sparta_model::{Precision, Quantize};
use std::time::Duration;

#[derive(Parser)]
struct Args {
    /// 15M, 110M or hidden,layers,heads,kv_heads,intermediate,vocab
    #[arg(long, default_value = "110M", value_parser = Shape::parse)]
    shape: Shape,
    /// Sequences of a batch
    #[arg(long, default_value = "4")]
    batch: usize,
    /// Tokens of each sequence
    #[arg(long, default_value = "256")]
    tokens: usize,
    /// cpu, cuda:0 or a device of wgpu
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of the CPU [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Share of the layers' scalars that SpaRTA trains
    #[arg(long, default_value = "0.005")]
    density: f64,
    /// Seconds to measure each for, in each round
    #[arg(long, default_value = "5")]
    seconds: f64,
    /// Rounds over all cases; the fastest step counts
    #[arg(long, default_value = "3")]
    rounds: usize,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    if model::write_model_if_asked()? {
        return Ok(());
    }
    let args = Args::parse();
    println!("| method | weights | ms/step | of bf16 | device MiB | weights MiB |");
    println!("|---|---|---|---|---|---|");
    for method in ["sparta", "lora"] {
        let case = |quantize| Case {
            shape: args.shape.clone(),
            batch: args.batch,
            tokens: args.tokens,
            method: method.into(),
            density: args.density,
            recompute: false,
            precision: Precision::BF16,
            device: args.device.clone(),
            weights: Weights::Bf16,
            quantize,
            threads: args.threads,
            autotune: false,
        };
        let mut bf16 = f64::INFINITY;
        let kinds = [None, Some(Quantize::Q8_0), Some(Quantize::Q4K)];
        let mut benches = kinds.map(|quantize| (quantize, f64::INFINITY, case(quantize).open(false)));
        for _ in 0..args.rounds.max(1) {
            for (_, seconds, bench) in &mut benches {
                let bench = bench.as_mut().map_err(|e| e.to_string())?;
                let measured = bench.measure(Duration::from_secs_f64(args.seconds), 5)?;
                *seconds = seconds.min(measured.measured.step_s_min);
            }
        }
        for (quantize, seconds, bench) in benches {
            let memory = bench?.bench.session.tensors().memory();
            bf16 = if quantize.is_none() { seconds } else { bf16 };
            println!(
                "| {method} | {} | {:.1} | {:.3} | {:.0} | {:.0} |",
                quantize.map_or("bf16".to_owned(), |quantize| quantize.to_string()),
                seconds * 1e3,
                seconds / bf16,
                mib(memory.values().sum()),
                mib(memory[&sparta_train::MemoryKind::Weights])
            );
        }
    }
    Ok(())
}
