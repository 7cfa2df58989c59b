//! `sparta-cli bench comm`.

use crate::output::{Output, bytes, is_silent, table};
use crate::{devices, together};
use clap::Args;
use sparta_core::bench::{Bencher, CommStep, Link, MethodCase, Together, Workload};
use sparta_core::job::config::{DEVICE, OUTPUT, at_least};
use sparta_core::plugin::PluginSet;
use sparta_core::team::Team;
use sparta_core::{Error, Result};
use sparta_graph::DeviceInfo;

#[derive(Args)]
pub struct CommArgs {
    /// Latency of the simulated link between two processes: 20ms, 50us, 0.1s [default: 0.1ms]
    #[arg(long, value_name = "TIME", value_parser = latency)]
    latency: Option<f64>,
    /// Bandwidth of the simulated link: 50Mbit, 1Gbit, 100MB [default: 1Gbit]
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    bandwidth: Option<f64>,
    /// Simulated processes, each with a device [default: 2]
    #[arg(long, value_name = "N", value_parser = at_least(2))]
    processes: Option<usize>,
    /// Models, each with the batch of one process, named as in `bench` [default: 15M]
    #[arg(long = "shape", value_name = "SHAPE", value_parser = Workload::parse)]
    shapes: Vec<Workload>,
    /// Methods, named as in `bench` [default: all]
    #[arg(long = "method", value_name = "NAME", value_parser = MethodCase::parse)]
    methods: Vec<MethodCase>,
    /// auto, cpu, wgpu, wgpu:N, cuda, cuda:N, or part of a device's name
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

/// Measures the processes that a launcher has started over their own link; without a launcher, simulates both.
pub fn comm(args: &CommArgs, plugins: &PluginSet) -> Result<()> {
    let mut team = together::team(plugins)?;
    if team.size() == 1 {
        return simulate(args, plugins);
    }
    let result = measure(args, plugins, &mut team);
    let result = result.and_then(|()| team.end()).map_err(|error| team.fail(error));
    if team.leads() { result } else { Ok(()) }
}

impl CommArgs {
    /// Models with their batches, and methods.
    fn cells(&self) -> Result<Vec<(Workload, MethodCase)>> {
        let shapes = match self.shapes.is_empty() {
            true => vec![Workload::parse("15M")?],
            false => self.shapes.clone(),
        };
        let methods: Vec<MethodCase> =
            if self.methods.is_empty() { MethodCase::standard().collect() } else { self.methods.clone() };
        let with = |work: &Workload| methods.iter().map(|method| (work.clone(), method.clone())).collect::<Vec<_>>();
        Ok(shapes.iter().flat_map(with).collect())
    }
}

fn progress(what: &str) {
    if !is_silent() {
        eprintln!("  {what}");
    }
}

fn of_link(link: Link, info: &DeviceInfo, processes: usize) -> String {
    let (megabits, milliseconds) = (link.bandwidth * 8e-6, link.latency * 1e3);
    format!(
        "{processes} processes, each on {} ({}), {megabits:.1} Mbit/s and {milliseconds:.3} ms from one to the next",
        info.name, info.id
    )
}

fn ms(seconds: f64) -> String {
    format!("{:.1}", 1e3 * seconds)
}

fn simulate(args: &CommArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.json);
    let found = devices::find(plugins);
    let info = found.select(&args.device)?;
    let bencher = Bencher { plugins, devices: &found, autotune: false, progress: &progress };
    let link = Link { latency: args.latency.unwrap_or(1e-4), bandwidth: args.bandwidth.unwrap_or(1.25e8) };
    let processes = args.processes.unwrap_or(2);
    let cells = args.cells()?;
    let steps = cells.iter().map(|(work, method)| bencher.comm(work, method, info, (processes, link)));
    let steps = steps.collect::<Result<Vec<CommStep>>>()?;
    output.say(of_link(link, info, processes))?;
    let row = |step: &CommStep| {
        let exchanged = &step.exchanged;
        let (step_of_one, expected, simulated) = (ms(exchanged.compute), ms(step.expected), ms(step.simulated));
        let faster = format!("{:.2}", step.speedup);
        vec![step.cell.clone(), bytes(exchanged.bytes), step_of_one, expected, simulated, faster]
    };
    let header = ["micro-batch", "gradients", "alone ms", "step ms", "simulated ms", "times one process"];
    output.say(table(&header, &steps.iter().map(row).collect::<Vec<_>>()))?;
    output.result(&steps)
}

fn measure(args: &CommArgs, plugins: &PluginSet, team: &mut Team) -> Result<()> {
    let given = [("--latency", args.latency.is_some()), ("--bandwidth", args.bandwidth.is_some())];
    let given = given.into_iter().chain([("--processes", args.processes.is_some())]);
    if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(Error::Usage(format!(
            "{option} is for simulations, but a launcher has started {} processes, which are measured: leave it out, \
             or start the command without a launcher",
            team.size()
        )));
    }
    let output = Output::new(args.json);
    let found = devices::find(plugins);
    let info = found.select_for(&args.device, team.local_rank())?;
    team.introduce(&format!("{} ({})", info.name, info.id))?;
    let bencher = Bencher { plugins, devices: &found, autotune: false, progress: &progress };
    let link = Link::measure(team)?;
    let cells = args.cells()?;
    let steps = cells.iter().map(|(work, method)| bencher.together(work, method, info, link, team));
    let steps = steps.collect::<Result<Vec<Together>>>()?;
    output.say(of_link(link, info, team.size()))?;
    let row = |step: &Together| {
        let Together { cell, alone, apart, together, exchange, allowed, waiting, .. } = step;
        let times = [*alone, *apart, *together, *exchange, *allowed, *waiting].map(ms);
        let faster = [step.speedup, step.possible].map(|times| format!("{times:.2}"));
        [cell.clone(), bytes(step.bytes as u64)].into_iter().chain(times).chain(faster).collect()
    };
    let header = [
        "micro-batch",
        "received",
        "alone ms",
        "apart ms",
        "together ms",
        "exchange ms",
        "allowed ms",
        "waited ms",
        "times one process",
        "possible",
    ];
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
