//! How the cost of a step grows over a factor of 16 in tokens, in layers and, for the update, in chosen scalars:
//! `cargo bench --workspace --bench linearity`. Growth is linear if each further unit costs the same; the fixed
//! part of a step, and the last layer, of which only the pooled rows are computed, are in the first column alone.

use sparta_benches::model::Weights;
use sparta_benches::{Case, Result, Shape, model};
use sparta_model::Precision;
use std::time::Duration;

const FACTORS: [usize; 5] = [1, 2, 4, 8, 16];

fn main() -> Result<()> {
    if model::write_model_if_asked()? {
        return Ok(());
    }
    println!("| what grows | 1 | 2 | 4 | 8 | 16 fold | for each further unit, from 1 | 2 | 4 | 8 on |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    row("tokens (8 sequences of 64), ms of a step", |factor| step(&case(288, 4, 8 * factor, 0.05)))?;
    row("layers, ms of a step", |factor| step(&case(288, factor, 8, 0.05)))?;
    row("chosen scalars, ms of the update", |factor| update(&case(768, 4, 1, 0.05 * factor as f64)))
}

/// 64 tokens per sequence.
fn case(hidden: usize, layers: usize, batch: usize, density: f64) -> Case {
    let (heads, intermediate) = (hidden / 48, hidden * 8 / 3);
    Case {
        shape: Shape::llama(hidden, layers, heads, intermediate, 32000),
        batch,
        tokens: 64,
        method: "sparta".into(),
        density,
        recompute: false,
        precision: Precision::F32,
        device: "cpu".into(),
        threads: None,
        autotune: false,
        weights: Weights::F32,
        quantize: None,
    }
}

/// Seconds of the fastest step.
fn step(case: &Case) -> Result<f64> {
    Ok(case.open(false)?.measure(Duration::from_secs(2), 7)?.measured.step_s_min)
}

/// Seconds of the optimizer's calls in the fastest of some steps.
fn update(case: &Case) -> Result<f64> {
    let profile = case.open(true)?.profile()?;
    Ok(profile.calls.iter().filter(|call| call.label.starts_with("optimizer")).map(|call| call.seconds).sum())
}

fn row(name: &str, seconds: impl Fn(usize) -> Result<f64>) -> Result<()> {
    let times = FACTORS.into_iter().map(seconds).collect::<Result<Vec<f64>>>()?;
    let spans = FACTORS.windows(2).zip(times.windows(2));
    let further = spans.map(|(factors, times)| (times[1] - times[0]) / (factors[1] - factors[0]) as f64);
    let cells: Vec<String> = times.iter().copied().chain(further).map(|time| format!("{:.2}", time * 1e3)).collect();
    println!("| {name} | {} |", cells.join(" | "));
    Ok(())
}
