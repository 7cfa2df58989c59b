//! Devices side by side, from one report or from several machines.

use super::report::{Device, DeviceReport, Report, Step};
use crate::job::thousands;
use crate::report::svg::{colour, hex};
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;
use sparta_graph::{DType, memory_size};
use sparta_model::{Error, Result};

const TEMPLATE: &str = include_str!("bench.html");

/// Every cell requested of any device, with the results of each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub devices: Vec<Entry>,
    pub steps: Vec<StepRow>,
    pub kernels: Vec<KernelRow>,
}

/// A device in a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    #[serde(flatten)]
    pub device: Device,
    pub system: String,
    pub program: String,
    pub date: String,
    pub f32_gflops: f64,
    pub bf16_gflops: Option<f64>,
    pub gb_per_s: f64,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRow {
    pub cell: String,
    pub precision: DType,
    /// The step on each device, in their order; `None`: not requested.
    pub steps: Vec<Option<Step>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelRow {
    pub name: String,
    pub precision: DType,
    /// GFLOP/s and GB/s of each device, in their order.
    pub rates: Vec<Option<(f64, f64)>>,
    /// Their shares of the ceiling.
    pub shares: Vec<Option<f64>>,
}

impl Entry {
    /// What tells devices of one name apart, most telling first.
    fn facts(&self) -> [&str; 5] {
        [&self.device.id, &self.device.driver, &self.date, &self.system, &self.program]
    }
}

impl Comparison {
    pub fn new(reports: &[Report]) -> Comparison {
        let devices: Vec<(&Report, &DeviceReport)> =
            reports.iter().flat_map(|report| report.devices.iter().map(move |device| (report, device))).collect();
        let entry = |(report, found): &(&Report, &DeviceReport)| Entry {
            device: found.device.clone(),
            system: report.system.clone(),
            program: report.program.clone(),
            date: report.date.clone(),
            f32_gflops: found.ceiling.f32_flops * 1e-9,
            bf16_gflops: found.ceiling.bf16_flops.map(|flops| flops * 1e-9),
            gb_per_s: found.ceiling.memory() * 1e-9,
            notes: found.notes.clone(),
        };
        let mut steps: Vec<StepRow> = Vec::new();
        let mut kernels: Vec<KernelRow> = Vec::new();
        for (i, (_, found)) in devices.iter().enumerate() {
            for step in &found.steps {
                let (cell, precision) = (step.cell(), step.precision);
                let known = steps.iter().position(|row| row.cell == cell && row.precision == precision);
                let row = known.unwrap_or_else(|| {
                    steps.push(StepRow { cell, precision, steps: vec![None; devices.len()] });
                    steps.len() - 1
                });
                steps[row].steps[i] = Some(step.clone());
            }
            for kernel in &found.kernels {
                let (name, precision) = (kernel.name.clone(), kernel.precision);
                let known = kernels.iter().position(|row| row.name == name && row.precision == precision);
                let row = known.unwrap_or_else(|| {
                    let (rates, shares) = (vec![None; devices.len()], vec![None; devices.len()]);
                    kernels.push(KernelRow { name, precision, rates, shares });
                    kernels.len() - 1
                });
                kernels[row].rates[i] = Some((kernel.gflops, kernel.gb_per_s));
                kernels[row].shares[i] = Some(kernel.share_of_ceiling);
            }
        }
        Comparison { devices: devices.iter().map(entry).collect(), steps, kernels }
    }

    /// A distinct title for each device: its name, with as many facts as that takes.
    pub fn titles(&self) -> Vec<String> {
        self.devices.iter().map(|entry| self.title(entry)).collect()
    }

    fn title(&self, entry: &Entry) -> String {
        let name = &entry.device.name;
        let mut alike: Vec<&Entry> = self.devices.iter().filter(|other| other.device.name == *name).collect();
        let mut telling = Vec::new();
        for (i, fact) in entry.facts().into_iter().enumerate() {
            if alike.iter().any(|other| other.facts()[i] != fact) {
                telling.push(fact.to_owned());
                alike.retain(|other| other.facts()[i] == fact);
            }
        }
        if alike.len() > 1 {
            let place = alike.iter().position(|other| std::ptr::eq(*other, entry)).unwrap_or_default();
            telling.push(format!("no. {}", place + 1));
        }
        if telling.is_empty() { name.clone() } else { format!("{name} ({})", telling.join(", ")) }
    }
}

/// The comparison as a page without scripts or network.
pub fn html(comparison: &Comparison) -> Result<String> {
    let titles = comparison.titles();
    let entries = comparison.devices.iter().zip(&titles).enumerate();
    let devices: Vec<Value> = entries.map(|(i, (entry, title))| device(i, entry, title)).collect();
    let steps: Vec<Value> = comparison.steps.iter().map(|row| step_row(row, &titles)).collect();
    let kernels: Vec<Value> = comparison.kernels.iter().map(kernel_row).collect();
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let template = environment.template_from_named_str("bench.html", TEMPLATE);
    let page = template.and_then(|template| template.render(context! { devices, steps, kernels }));
    page.map_err(|e| Error::Usage(format!("the comparison cannot be written: {e:#}")))
}

fn device(i: usize, entry: &Entry, title: &str) -> Value {
    let rate = |gflops: f64| format!("{} GFLOP/s", thousands(gflops.round() as u64));
    context! {
        colour => hex(colour(i)),
        title,
        id => entry.device.id,
        driver => entry.device.driver,
        memory => entry.device.memory.map(memory_size),
        system => entry.system,
        program => entry.program,
        date => entry.date,
        f32 => rate(entry.f32_gflops),
        bf16 => entry.bf16_gflops.map(rate),
        bandwidth => format!("{:.0} GB/s", entry.gb_per_s),
        notes => entry.notes,
    }
}

fn step_row(row: &StepRow, titles: &[String]) -> Value {
    let speed = |step: &Step| step.figures().map_or(0.0, |figures| figures.measured.tokens_per_s);
    let fastest = row.steps.iter().flatten().map(speed).fold(0.0, f64::max);
    let cell = |(i, (step, title)): (usize, (&Option<Step>, &String))| {
        let Some(step) = step else { return context! { title, colour => hex(colour(i)), why => "not requested" } };
        let Some(figures) = step.figures() else {
            let super::Outcome::NotMeasured(why) = &step.outcome else { return Value::UNDEFINED };
            return context! { title, colour => hex(colour(i)), why };
        };
        context! {
            title,
            colour => hex(colour(i)),
            speed => thousands(figures.measured.tokens_per_s.round() as u64),
            percent => format!("{:.1}", 100.0 * figures.measured.tokens_per_s / fastest),
            share => format!("{:.0} %", 100.0 * figures.share_of_ceiling),
            memory => memory_size(figures.memory),
            joules => figures.joules.map(|joules| format!("{joules:.1} J per step")),
            checked => figures.checked,
        }
    };
    let cells: Vec<Value> = row.steps.iter().zip(titles).enumerate().map(cell).collect();
    context! { cell => row.cell, precision => row.precision.to_string(), cells }
}

fn kernel_row(row: &KernelRow) -> Value {
    let cell = |(rates, share): (&Option<(f64, f64)>, &Option<f64>)| match (rates, share) {
        (Some((gflops, gb)), Some(share)) => format!("{gflops:.0} GFLOP/s, {gb:.0} GB/s, {:.0} %", 100.0 * share),
        _ => "not measured".into(),
    };
    let cells: Vec<String> = row.rates.iter().zip(&row.shares).map(cell).collect();
    context! { name => row.name, precision => row.precision.to_string(), cells }
}

#[cfg(test)]
mod tests {
    use super::super::{Figures, Kernel, Measured, Outcome, VERSION};
    use super::*;
    use sparta_train::{Bandwidth, Ceiling};

    fn report(name: &str, method: &str, outcome: Outcome) -> Report {
        let ceiling =
            Ceiling { f32_flops: 1e12, bf16_flops: None, bandwidth: vec![Bandwidth { bytes: 1, rate: 1e11 }] };
        let device = Device { id: "wgpu:0".into(), name: name.into(), driver: "d".into(), memory: Some(8 << 30) };
        let step =
            Step { shape: "15M".into(), batch: 16, tokens: 64, method: method.into(), precision: DType::F32, outcome };
        Report {
            sparta_bench: VERSION,
            program: "0".into(),
            system: "linux x86_64".into(),
            date: "2026-01-01".into(),
            devices: vec![DeviceReport {
                device,
                ceiling,
                kernels: vec![],
                steps: vec![step],
                tuned: None,
                notes: vec![],
            }],
        }
    }

    fn measured() -> Outcome {
        let measured = Measured {
            steps: 5,
            step_s: 0.5,
            step_s_min: 0.4,
            tokens_per_s: 2048.0,
            gflop_per_step: 10.0,
            gflops: 20.0,
            loss: 0.7,
        };
        Outcome::Measured(Figures {
            measured,
            trained: 1,
            share_of_ceiling: 0.02,
            memory: 1 << 30,
            joules: None,
            checked: true,
        })
    }

    #[test]
    fn equal_cells_are_one_row_and_missing_ones_are_reported() {
        let wrong = Outcome::NotMeasured("wrong results".into());
        let mut reports =
            [report("a <b>", "full", measured()), report("c", "full", wrong), report("d", "lora", measured())];
        let (name, precision) = ("add".into(), DType::F32);
        let kernel = Kernel { name, precision, seconds: 1.0, gflops: 3.0, gb_per_s: 4.0, share_of_ceiling: 0.25 };
        reports[0].devices[0].kernels.push(kernel);
        let comparison = Comparison::new(&reports);
        assert_eq!(comparison.devices.len(), 3);
        assert_eq!(comparison.steps.len(), 2);
        assert!(comparison.steps[0].steps[2].is_none() && comparison.steps[1].steps[0].is_none());
        let page = html(&comparison).unwrap();
        for text in ["a &lt;b&gt;", "wrong results", "not requested", "2,048", "1.00 GiB", "s, 25 %", "not measured"] {
            assert!(page.contains(text), "{text} in {page}");
        }
        assert!(!page.contains("<b>"));
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bench.json");
        let report = report("a", "full", measured());
        std::fs::write(&file, serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(Report::read(&file).unwrap(), report);
        let empty = r#"{"sparta_bench": 1, "program": "0", "system": "s", "date": "d", "devices": []}"#;
        for (text, part) in [
            ("{}", "got JSON without a number `sparta_bench`"),
            ("<html>", "got a file that is not JSON, at line 1, column 1"),
            ("", "got a file that ends too early"),
            (&empty[..40], "got a file that ends too early, at line 1, column 40"),
            (r#"{"sparta_bench": 2}"#, "expected a report of version 1, got version 2"),
            (r#"{"sparta_bench": 1}"#, "a damaged report: a key is missing or wrong in line 1, column 19"),
            (empty, "a report without devices"),
        ] {
            std::fs::write(&file, text).unwrap();
            let message = Report::read(&file).unwrap_err().to_string();
            assert!(message.contains(file.to_str().unwrap()) && message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_title_distinguishes_devices_of_the_same_name() {
        let mut reports = ["card", "card", "card", "card", "other"].map(|name| report(name, "full", measured()));
        reports[1].devices[0].device.driver = "e".into();
        reports[2].date = "2026-01-02".into();
        reports[3].devices[0].device.id = "cuda:0".into();
        let [old, other, new] = ["wgpu:0, d, 2026-01-01", "wgpu:0, e", "wgpu:0, d, 2026-01-02"];
        let expected = [old, other, new, "cuda:0"].map(|telling| format!("card ({telling})"));
        let titles = Comparison::new(&reports).titles();
        assert_eq!((&titles[..4], titles[4].as_str()), (&expected[..], "other"));
        let twice = [reports[4].clone(), reports[4].clone()];
        assert_eq!(Comparison::new(&twice).titles(), ["other (no. 1)", "other (no. 2)"]);
    }
}
