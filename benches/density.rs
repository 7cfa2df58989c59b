//! Time of a training step and device memory by the share of scalars that SpaRTA trains, compared with full
//! fine-tuning:
//! `cargo bench --workspace --bench density [-- --shape 15M --svg benches/density.svg]`.

use clap::Parser;
use sparta_benches::model::Weights;
use sparta_benches::{Case, Result, Shape, model, training::mib};
use sparta_core::report::svg::{Chart, Series, colour, page};
use sparta_model::Precision;
use std::path::PathBuf;
use std::time::Duration;

const DENSITIES: [f64; 13] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.6, 1.0];

#[derive(Parser)]
struct Args {
    /// 15M, 110M or hidden,layers,heads,kv_heads,intermediate,vocab
    #[arg(long, default_value = "15M", value_parser = Shape::parse)]
    shape: Shape,
    /// Sequences of a batch
    #[arg(long, default_value = "16")]
    batch: usize,
    /// Tokens of each sequence
    #[arg(long, default_value = "64")]
    tokens: usize,
    /// cpu or a device of wgpu
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of the CPU [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Seconds to measure each density, in each round
    #[arg(long, default_value = "2")]
    seconds: f64,
    /// Passes over all densities, of which the fastest step counts
    #[arg(long, default_value = "3")]
    rounds: usize,
    /// Write the plot to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

struct Point {
    case: Case,
    trained: u64,
    seconds: f64,
    memory: f64,
}

fn main() -> Result<()> {
    if model::write_model_if_asked()? {
        return Ok(());
    }
    let args = Args::parse();
    let case = |method: &str, density| Case {
        shape: args.shape.clone(),
        batch: args.batch,
        tokens: args.tokens,
        method: method.into(),
        density,
        recompute: false,
        precision: Precision::F32,
        device: args.device.clone(),
        threads: args.threads,
        autotune: false,
        weights: Weights::F32,
        quantize: None,
    };
    let cases = std::iter::once(case("full", 1.0)).chain(DENSITIES.map(|density| case("sparta", density)));
    let mut points: Vec<Point> =
        cases.map(|case| Point { case, trained: 0, seconds: f64::INFINITY, memory: 0.0 }).collect();
    for _ in 0..args.rounds.max(1) {
        for point in &mut points {
            let mut bench = point.case.open(false)?;
            let measured = bench.measure(Duration::from_secs_f64(args.seconds), 7)?;
            point.seconds = point.seconds.min(measured.measured.step_s_min);
            point.trained = bench.trained;
            point.memory = mib(bench.bench.session.tensors().memory().values().sum());
        }
    }
    let (full, sparta) = points.split_first().ok_or("nothing was measured")?;
    println!("| method | density | trained | ms/step | of full | device MiB | of full |");
    println!("|---|---|---|---|---|---|---|");
    for point in &points {
        let density = if point.case.method == "full" { String::new() } else { format!("{} %", percent(&point.case)) };
        println!(
            "| {} | {density} | {} | {:.1} | {:.2} | {:.0} | {:.2} |",
            point.case.method,
            point.trained,
            point.seconds * 1e3,
            point.seconds / full.seconds,
            point.memory,
            point.memory / full.memory
        );
    }
    if let Some(path) = args.svg {
        let chart = |title: &str, value: fn(&Point) -> f64| {
            let x = |point: &Point| percent(&point.case).log10();
            let line =
                |points: Vec<(f64, f64)>, i| Series { name: String::new(), points, colour: colour(i), mark: None };
            let ends = [&sparta[0], &sparta[sparta.len() - 1]].map(|end| (x(end), value(full)));
            Chart {
                title: format!("{title}: SpaRTA by density, and full fine-tuning (level)"),
                x_label: "log10 of the trained share of the layers' scalars in %".into(),
                series: vec![line(sparta.iter().map(|p| (x(p), value(p))).collect(), 0), line(ends.to_vec(), 1)],
                ..Chart::default()
            }
        };
        let charts = [chart("ms per step", |p| p.seconds * 1e3), chart("device MiB", |p| p.memory)];
        std::fs::write(path, page(&charts, 2)?)?;
    }
    Ok(())
}

fn percent(case: &Case) -> f64 {
    (case.density * 1e8).round() / 1e6
}
