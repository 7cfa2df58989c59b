//! Tokens per second of text generation, compared with the time to read the weights once:
//! `cargo bench --workspace --bench generate -- MODEL [DEVICE]`.

use sparta_benches::{Result, open_device};
use sparta_core::adapter::AppliedAdapter;
use sparta_core::plugin::PluginSet;
use sparta_train::{Ceiling, MemoryKind};
use std::path::Path;
use std::time::Instant;

/// Tokens to read before generating, and tokens to generate.
const PROMPT: usize = 256;
const WRITTEN: usize = 128;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(model) = args.first() else {
        // Without arguments, as when cargo runs all benchmarks.
        eprintln!("SKIPPED: give a model directory: cargo bench --workspace --bench generate -- MODEL [DEVICE]");
        return Ok(());
    };
    let mut device = open_device(args.get(1).map_or("cpu", String::as_str), None)?;
    let (name, rate) = (device.info().name, Ceiling::measure(&mut *device)?.memory());
    let applied = AppliedAdapter::open(Path::new(model), None, &PluginSet::default())?;
    let mut session = applied.generation(device, PROMPT + WRITTEN)?;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| 3 + i % 97).collect();
    // Once to prepare the plans.
    session.decode(&prompt, 0)?;
    session.decode(&[3], PROMPT)?;
    let start = Instant::now();
    session.decode(&prompt, 0)?;
    let read = start.elapsed().as_secs_f64();
    let mut steps = Vec::new();
    for past in PROMPT..PROMPT + WRITTEN {
        let start = Instant::now();
        session.decode(&[3], past)?;
        steps.push(start.elapsed().as_secs_f64());
    }
    steps.sort_by(f64::total_cmp);
    let (median, best) = (steps[WRITTEN / 2], steps[0]);
    let weights = session.tensors().memory()[&MemoryKind::Weights] as f64;
    let least = weights / rate;
    println!("{name}: weights of {:.1} MB, memory at {:.1} GB/s", weights / 1e6, rate / 1e9);
    println!("| prompt, tokens/s | written, tokens/s | fastest token, ms | weights once, ms | ratio |");
    println!("|---|---|---|---|---|");
    println!(
        "| {:.0} | {:.1} | {:.2} | {:.2} | {:.2} |",
        PROMPT as f64 / read,
        1.0 / median,
        best * 1e3,
        least * 1e3,
        best / least
    );
    Ok(())
}
