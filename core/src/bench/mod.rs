//! `sparta-cli bench`: compares devices in single ops and in whole training steps.

mod case;
mod comm;
mod compare;
mod energy;
mod kernels;
mod report;
mod shape;
mod together;
mod trajectory;

pub use case::{Bench, Case, Measured, MethodCase, Prepared};
pub use comm::{CommStep, Exchanged, Link};
pub use compare::{Comparison, html};
pub use kernels::Kernel;
pub use report::{Device, DeviceReport, Figures, Outcome, Report, Step, VERSION};
pub use shape::{Noise, RandomWeights, Shape};
pub use together::Together;
pub use trajectory::Trajectories;

use crate::device::Devices;
use crate::plugin::PluginSet;
use energy::Meter;
use sparta_graph::{Backend, DType, DeviceInfo};
use sparta_model::{Error, Precision, Result};
use sparta_train::{Ceiling, Recompute};
use std::time::Duration;

/// A shape with its batch: sequences, and tokens of each.
#[derive(Clone, Debug)]
pub struct Workload {
    pub shape: Shape,
    pub batch: usize,
    pub tokens: usize,
}

/// What to measure on each device.
#[derive(Clone, Debug)]
pub struct Request {
    pub workloads: Vec<Workload>,
    pub methods: Vec<MethodCase>,
    /// `None`: those that the device supports.
    pub precisions: Option<Vec<Precision>>,
    /// The shapes whose ops are measured singly.
    pub kernels: Vec<Shape>,
    /// Seconds for which steps are repeated.
    pub seconds: f64,
    /// Steps and ops that would take more seconds than this at the device's ceiling are left out.
    pub longest: f64,
}

/// The standard shapes with their batches.
const WORKLOADS: [(&str, usize, usize); 6] = [
    ("15M", 16, 64),
    ("SmolLM2-135M", 1, 512),
    ("110M", 4, 128),
    ("1.1B", 4, 256),
    ("gemma-2b", 16, 256),
    ("mistral-7b", 8, 256),
];
/// Names of methods, their plugins, and the options, as JSON, that differ from the defaults.
const METHODS: [(&str, &str, &str); 5] = [
    ("full", "full", "{}"),
    ("lora", "lora", "{}"),
    ("lora-all", "lora", r#"{"lora-targets": "all-linear"}"#),
    ("sparta-0.05", "sparta", r#"{"density": 0.05}"#),
    ("sparta-0.005", "sparta", r#"{"density": 0.005}"#),
];
/// The fewest steps measured.
const AT_LEAST: usize = 4;

impl Workload {
    /// A shape's name, with its standard batch, or `SHAPE:BATCHxTOKENS`.
    ///
    /// Errors: an unknown shape, or one that is not a valid model; an invalid batch; an unnamed shape without a batch.
    pub fn parse(text: &str) -> Result<Workload> {
        let (name, batch) = text.split_once(':').map_or((text, None), |(name, batch)| (name, Some(batch)));
        let shape = Shape::parse(name)?;
        let standard = WORKLOADS.iter().find(|(known, ..)| *known == name).map(|&(_, batch, tokens)| (batch, tokens));
        let given = |batch: &str| {
            let (batch, tokens) = batch.split_once('x')?;
            Some((batch.parse().ok()?, tokens.parse().ok()?))
        };
        match batch.map_or(standard, given) {
            Some((batch, tokens)) if batch > 0 && tokens > 0 => {
                shape.decoder(DType::BF16)?;
                Ok(Workload { shape, batch, tokens })
            }
            _ => Err(Error::Usage(format!("`{text}`: expected a batch, as in {name}:8x256"))),
        }
    }

    pub fn standard() -> impl Iterator<Item = Workload> {
        WORKLOADS.iter().filter_map(|(name, ..)| Workload::parse(name).ok())
    }
}

impl MethodCase {
    /// Errors list the names.
    pub fn parse(name: &str) -> Result<MethodCase> {
        let Some((name, plugin, options)) = METHODS.iter().find(|(known, ..)| *known == name) else {
            let names = METHODS.map(|(name, ..)| name).join(", ");
            return Err(Error::Usage(format!("`{name}` is not a method of the benchmark; expected {names}")));
        };
        let options = serde_json::from_str(options).map_err(|e| Error::Usage(format!("options of {name}: {e}")))?;
        Ok(MethodCase { name: (*name).into(), plugin: (*plugin).into(), options })
    }

    pub fn standard() -> impl Iterator<Item = MethodCase> {
        METHODS.iter().filter_map(|(name, ..)| MethodCase::parse(name).ok())
    }
}

/// The plugins and devices to measure with.
pub struct Bencher<'a> {
    pub plugins: &'a PluginSet,
    pub devices: &'a Devices,
    /// Whether devices choose kernels by measuring.
    pub autotune: bool,
    /// Called before each op and step.
    pub progress: &'a dyn Fn(&str),
}

impl Bencher<'_> {
    pub(super) fn open(&self, info: &DeviceInfo) -> Result<Box<dyn Backend>> {
        let mut device = self.devices.open(info)?;
        if self.autotune
            && let Some(warning) = device.autotune(None)
        {
            (self.progress)(&format!("warning: {warning}"));
        }
        Ok(device)
    }

    /// The beginning of a device's report: its ceiling.
    ///
    /// Errors: the device cannot be opened or measured.
    pub fn begin(&self, info: &DeviceInfo) -> Result<DeviceReport> {
        (self.progress)("ceiling");
        let ceiling = Ceiling::measure(&mut *self.open(info)?)?;
        let (kernels, steps, notes) = (vec![], vec![], vec![]);
        Ok(DeviceReport { device: info.into(), ceiling, kernels, steps, tuned: None, notes })
    }

    /// Measures what is requested of a device whose report has begun. `found` gets the report as it grows, so that
    /// nothing is lost if a later step ends the process.
    ///
    /// Errors: those of `found`. The device's failures are in the report.
    pub fn measure(
        &self,
        request: &Request,
        info: &DeviceInfo,
        mut report: DeviceReport,
        mut found: impl FnMut(&DeviceReport) -> Result<()>,
    ) -> Result<DeviceReport> {
        found(&report)?;
        let precisions = request.precisions.clone().unwrap_or_else(|| offered(info));
        for shape in &request.kernels {
            for precision in &precisions {
                self.kernels(request, info, shape, precision.activations, &mut report);
                found(&report)?;
            }
        }
        let stored = trajectory::stored()?;
        for work in &request.workloads {
            let weights = RandomWeights::new(&work.shape, DType::BF16)?;
            for precision in &precisions {
                for method in &request.methods {
                    let case = work.case(method, *precision);
                    let mut step = case.step();
                    (self.progress)(&format!("{} {}", step.cell(), step.precision));
                    let outcome = self.cell(request, info, (&case, &weights), &mut report, &stored);
                    step.outcome = outcome.unwrap_or_else(|e| Outcome::NotMeasured(e.to_string()));
                    report.steps.push(step);
                    found(&report)?;
                }
            }
        }
        report.settle_shares();
        found(&report)?;
        Ok(report)
    }

    fn kernels(
        &self,
        request: &Request,
        info: &DeviceInfo,
        shape: &Shape,
        precision: DType,
        report: &mut DeviceReport,
    ) {
        (self.progress)(&format!("ops of {} {precision}", shape.name));
        let mut notes = Vec::new();
        let measured = self.open(info).and_then(|mut device| {
            let left_out = |note| notes.push(note);
            let found =
                kernels::measure(&mut *device, shape, precision, &mut report.ceiling, request.longest, left_out);
            report.add_tuned(device.tuned());
            found
        });
        match measured {
            Ok(kernels) => report.kernels.extend(kernels),
            Err(e) => notes.push(format!("ops of {} in {precision}: {e}", shape.name)),
        }
        report.notes.extend(notes);
    }

    fn cell(
        &self,
        request: &Request,
        info: &DeviceInfo,
        (case, weights): (&Case, &RandomWeights),
        report: &mut DeviceReport,
        stored: &Trajectories,
    ) -> Result<Outcome> {
        let ceiling = &mut report.ceiling;
        let precision = case.precision.activations;
        let prepared = case.prepare(self.plugins, weights, info)?;
        if !prepared.planned.fits(info) {
            let needed = sparta_graph::memory_size(prepared.planned.total());
            return Ok(Outcome::NotMeasured(format!("does not fit: it needs {needed} on the device")));
        }
        let least = prepared.flops as f64 / ceiling.flops(precision);
        if least > request.longest {
            return Ok(Outcome::NotMeasured(format!("left out: a step takes at least {least:.1} s")));
        }
        let (planned, trained) = (prepared.planned.total(), prepared.trained);
        let cell = case.step().cell();
        let judge = |found: &[[f64; 2]]| trajectory::check(stored, &cell, precision, found);
        let of_layers = case.checked()?.shape != case.shape;
        let mut checked = None;
        if of_layers && stored.contains_key(&trajectory::key(&cell, precision)) {
            checked = judge(&self.trajectory(case, weights, info)?);
        }
        if let Some(Err(wrong)) = checked {
            return Ok(Outcome::NotMeasured(wrong));
        }
        let mut bench = case.open(prepared, weights, self.open(info)?)?;
        if !of_layers {
            checked = judge(&bench.trajectory()?);
        }
        let checked = match checked {
            Some(Err(wrong)) => return Ok(Outcome::NotMeasured(wrong)),
            checked => checked.is_some(),
        };
        let meter = Meter::start(info);
        let measured = bench.measure(Duration::from_secs_f64(request.seconds), AT_LEAST)?;
        let joules = meter.joules().map(|joules| joules / measured.done() as f64);
        let memory = bench.session.tensors().memory_use().map_or(planned, |used| used.peak);
        ceiling.raise(precision, (measured.gflop_per_step * 1e9) as u64, 0, measured.step_s);
        report.add_tuned(bench.session.tensors().tuned());
        Ok(Outcome::Measured(Figures { measured, trained, share_of_ceiling: 0.0, memory, joules, checked }))
    }

    /// The trajectories of the request's cells, for storage; meant for the CPU backend.
    pub fn record(&self, request: &Request, info: &DeviceInfo) -> Result<Trajectories> {
        let mut found = Trajectories::new();
        for work in &request.workloads {
            let weights = RandomWeights::new(&work.shape, DType::BF16)?;
            for precision in request.precisions.clone().unwrap_or_else(|| offered(info)) {
                for method in &request.methods {
                    let case = work.case(method, precision);
                    let cell = case.step().cell();
                    (self.progress)(&format!("{cell} {precision}"));
                    let steps = self.trajectory(&case, &weights, info)?;
                    found.insert(trajectory::key(&cell, precision.activations), steps);
                }
            }
        }
        Ok(found)
    }

    /// The first steps of a case, or of its first layers ([`Case::checked`]).
    fn trajectory(&self, case: &Case, weights: &RandomWeights, info: &DeviceInfo) -> Result<Vec<[f64; 2]>> {
        let checked = case.checked()?;
        let weights = weights.of(&checked.shape)?;
        let prepared = checked.prepare(self.plugins, &weights, info)?;
        checked.open(prepared, &weights, self.open(info)?)?.trajectory()
    }
}

impl Workload {
    fn case(&self, method: &MethodCase, precision: Precision) -> Case {
        let Workload { shape, batch, tokens } = self.clone();
        let (method, recompute, weights) = (method.clone(), Recompute::Auto, DType::BF16);
        Case { shape, batch, tokens, processes: 1, method, precision, recompute, weights }
    }
}

impl Case {
    fn step(&self) -> Step {
        Step {
            shape: self.shape.name.clone(),
            batch: self.batch,
            tokens: self.tokens,
            method: self.method.name.clone(),
            precision: self.precision.activations,
            outcome: Outcome::NotMeasured("not measured yet".into()),
        }
    }
}

impl DeviceReport {
    /// Computes the shares of the final ceiling. All measurements have raised it, so what is above 1 is rounding.
    fn settle_shares(&mut self) {
        let ceiling = &self.ceiling;
        for kernel in &mut self.kernels {
            let (flops, bytes) = (kernel.gflops * kernel.seconds * 1e9, kernel.gb_per_s * kernel.seconds * 1e9);
            let least = ceiling.least_seconds(kernel.precision, flops as u64, bytes as u64);
            kernel.share_of_ceiling = (least / kernel.seconds).min(1.0);
        }
        for step in &mut self.steps {
            if let Outcome::Measured(figures) = &mut step.outcome {
                let share = figures.measured.gflops * 1e9 / ceiling.flops(step.precision);
                figures.share_of_ceiling = share.min(1.0);
            }
        }
    }
}

/// The precisions that a device supports.
fn offered(info: &DeviceInfo) -> Vec<Precision> {
    let all = [Precision::BF16, Precision::F32];
    all.into_iter().filter(|precision| info.activations.contains(&precision.activations)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_names_are_understood_and_others_refused() {
        assert_eq!(Workload::standard().count(), WORKLOADS.len());
        assert_eq!(MethodCase::standard().count(), METHODS.len());
        let work = Workload::parse("64,2,4,2,128,512:2x16").unwrap();
        assert_eq!((work.shape.hidden, work.batch, work.tokens), (64, 2, 16));
        assert_eq!(Workload::parse("110M:1x2").unwrap().tokens, 2);
        for text in ["110", "110M:", "110M:3", "110M:0x4", "64,2,4,2,128,512", "64,2,4,3,128,512:2x16"] {
            assert!(Workload::parse(text).is_err(), "{text}");
        }
        assert!(MethodCase::parse("sparta").unwrap_err().to_string().contains("sparta-0.005"));
    }
}
