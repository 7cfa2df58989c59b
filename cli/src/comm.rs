//! `sparta-cli bench comm`.

use crate::devices;
use crate::output::{Output, bytes, table};
use clap::Args;
use sparta_core::Result;
use sparta_core::bench::{Bencher, CommStep, Link, MethodCase, Workload};
use sparta_core::job::config::{DEVICE, OUTPUT, at_least};
use sparta_core::plugin::PluginSet;

#[derive(Args)]
pub struct CommArgs {
    /// Latency of the link between two processes: 20ms, 50us, 0.1s
    #[arg(long, value_name = "TIME", default_value = "0.1ms", value_parser = latency)]
    latency: f64,
    /// Bandwidth of the link: 50Mbit, 1Gbit, 100MB
    #[arg(long, value_name = "RATE", default_value = "1Gbit", value_parser = bandwidth)]
    bandwidth: f64,
    /// Processes, each with a device
    #[arg(long, value_name = "N", default_value = "2", value_parser = at_least(2))]
    processes: usize,
    /// Models, each with the batch of one process, as `bench` has them [default: 15M]
    #[arg(long = "shape", value_name = "SHAPE", value_parser = Workload::parse)]
    shapes: Vec<Workload>,
    /// Methods, as `bench` has them [default: all]
    #[arg(long = "method", value_name = "NAME", value_parser = MethodCase::parse)]
    methods: Vec<MethodCase>,
    /// auto, cpu, wgpu, wgpu:N, cuda, cuda:N, or a part of a device's name
    #[arg(long, value_name = "D", default_value = "auto", help_heading = DEVICE)]
    device: String,
    /// Print the steps as one line of JSON on stdout, and everything else on stderr
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

/// Seconds.
fn latency(text: &str) -> std::result::Result<f64, String> {
    in_units(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]).ok_or_else(|| "expected a time such as 20ms".into())
}

/// Bytes a second.
fn bandwidth(text: &str) -> std::result::Result<f64, String> {
    let units = [("kbit", 125.0), ("Mbit", 125e3), ("Gbit", 125e6), ("MB", 1e6), ("GB", 1e9)];
    let rate = in_units(text.trim_end_matches("/s"), &units).filter(|&rate| rate > 0.0);
    rate.ok_or_else(|| "expected a rate such as 50Mbit".into())
}

fn in_units(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * factor)
}

pub fn comm(args: &CommArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.json);
    let found = devices::find(plugins);
    let info = found.select(&args.device)?;
    let progress = |what: &str| eprintln!("  {what}");
    let bencher = Bencher { plugins, devices: &found, autotune: false, progress: &progress };
    let shapes = match args.shapes.is_empty() {
        true => vec![Workload::parse("15M")?],
        false => args.shapes.clone(),
    };
    let methods: Vec<MethodCase> =
        if args.methods.is_empty() { MethodCase::standard().collect() } else { args.methods.clone() };
    let link = Link { latency: args.latency, bandwidth: args.bandwidth };
    let mut steps: Vec<CommStep> = Vec::new();
    for work in &shapes {
        for method in &methods {
            steps.push(bencher.comm(work, method, info, (args.processes, link))?);
        }
    }
    let (megabits, milliseconds) = (link.bandwidth * 8e-6, link.latency * 1e3);
    output.say(format!(
        "{} processes, each on {} ({}), {megabits} Mbit/s and {milliseconds} ms from one to the next",
        args.processes, info.name, info.id
    ))?;
    let ms = |seconds: f64| format!("{:.1}", 1e3 * seconds);
    let row = |step: &CommStep| {
        let exchanged = &step.exchanged;
        let (step_of_one, expected, played) = (ms(exchanged.compute), ms(step.expected), ms(step.played));
        let faster = format!("{:.2}", step.speedup);
        vec![step.cell.clone(), bytes(exchanged.bytes), step_of_one, expected, played, faster]
    };
    let header = ["micro-batch", "gradients", "alone ms", "step ms", "played ms", "times one process"];
    output.say(table(&header, &steps.iter().map(row).collect::<Vec<_>>()))?;
    output.result(&steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_understood() {
        assert_eq!((latency("20ms"), latency("50us"), latency("0.5s")), (Ok(0.02), Ok(50.0 * 1e-6), Ok(0.5)));
        assert_eq!((bandwidth("50Mbit"), bandwidth("1Gbit/s"), bandwidth("2GB")), (Ok(6.25e6), Ok(1.25e8), Ok(2e9)));
        for wrong in ["", "20", "ms", "-1ms", "infs"] {
            assert!(latency(wrong).is_err(), "{wrong}");
        }
        assert!(bandwidth("0Mbit").is_err() && bandwidth("5").is_err());
    }
}
