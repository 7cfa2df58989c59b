//! Whole training steps of a synthetic model, read from a directory like a run's.

use crate::Result;
use crate::machine::{self, CpuWindow};
use crate::model::{self, Weights};
use serde::Serialize;
use sparta_backend_cpu::Cpu;
use sparta_backend_cuda::Plugin as Cuda;
use sparta_core::bench::{self, Measured, MethodCase, Shape};
use sparta_core::plugin::PluginSet;
use sparta_core::weights;
use sparta_graph::Backend;
use sparta_model::{Precision, Quantize};
use sparta_plugin::backend::BackendPlugin;
use sparta_train::{Ceiling, Recompute};
use sparta_wgpu::WgpuBackend;
use std::collections::BTreeMap;
use std::time::Duration;

/// One cell of a table: what is trained, how, and on what.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: Shape,
    /// Sequences of a batch, and tokens of each.
    pub batch: usize,
    pub tokens: usize,
    /// `full`, `lora`, `lora-all` (on all projections), `head` (with a forward pass in each step) or `sparta`.
    pub method: String,
    /// The share of the scalars of all layers and norms that SpaRTA trains.
    pub density: f64,
    pub recompute: bool,
    pub precision: Precision,
    pub device: String,
    /// The type of the weights on disk.
    pub weights: Weights,
    /// What the model is rounded to when it is loaded.
    pub quantize: Option<Quantize>,
    /// Threads of the CPU; `None`: all cores.
    pub threads: Option<usize>,
    /// Whether the device chooses kernels by measuring.
    pub autotune: bool,
}

/// An opened session with its one batch.
pub struct Opened {
    pub bench: bench::Bench,
    ceiling: Option<Ceiling>,
    pub trained: u64,
    /// Bytes of activations and scratch.
    pub arena: usize,
}

/// The cost of a step, with CPU use.
#[derive(Clone, Debug, Serialize)]
pub struct OnCpu {
    #[serde(flatten)]
    pub measured: Measured,
    /// CPU seconds of a step, all threads together.
    pub cpu_s: Option<f64>,
    pub others_cpu_share: Option<f64>,
}

impl Case {
    /// Opens the device and uploads the model. With `profile` the device's ceiling is measured first.
    pub fn open(&self, profile: bool) -> Result<Opened> {
        let directory = model::directory(&self.shape, self.weights)?;
        let mut weights = weights::Weights::open(&directory)?;
        weights.quantize(self.quantize);
        weights.decode_as(self.precision.activations);
        let mut device = open_device(&self.device, self.threads)?;
        if self.autotune
            && let Some(warning) = device.autotune(None)
        {
            eprintln!("warning: {warning}");
        }
        let ceiling = if profile { Some(Ceiling::measure(&mut *device)?) } else { None };
        let case = self.in_core()?;
        let prepared = case.prepare(&plugins(), &weights, &device.info())?;
        let (trained, arena) = (prepared.trained, prepared.planned.arena.iter().sum());
        Ok(Opened { bench: case.open(prepared, &weights, device)?, ceiling, trained, arena })
    }

    fn in_core(&self) -> Result<bench::Case> {
        let of_all = self.density * model::share_of_layers(&self.shape)?;
        let method = match self.method.as_str() {
            "lora-all" => MethodCase::parse("lora-all")?,
            name => {
                let density = [("density".to_owned(), of_all.into())];
                let options = if name == "sparta" { BTreeMap::from(density) } else { BTreeMap::new() };
                MethodCase { name: name.into(), plugin: name.into(), options }
            }
        };
        Ok(bench::Case {
            shape: self.shape.clone(),
            batch: self.batch,
            tokens: self.tokens,
            processes: 1,
            method,
            precision: self.precision,
            recompute: if self.recompute { Recompute::On } else { Recompute::Off },
            weights: self.weights.dtype(),
        })
    }
}

/// Opens a device by its id; `threads` are those of the CPU, by default all.
pub fn open_device(id: &str, threads: Option<usize>) -> Result<Box<dyn Backend>> {
    if id == "cpu" {
        return Ok(Box::new(Cpu::new(threads)?));
    }
    if id.starts_with("cuda") {
        return Ok(Cuda.open(id)?);
    }
    Ok(Box::new(WgpuBackend::open(id)?))
}

/// The methods, linked in.
fn plugins() -> PluginSet {
    let mut plugins = PluginSet::default();
    let entries =
        [sparta_method_sparta::entry, sparta_method_lora::entry, sparta_method_full::entry, sparta_method_head::entry];
    for entry in entries {
        // SAFETY: entry points that the SDK wrote, of crates that are part of this executable.
        unsafe { plugins.link(entry) };
    }
    plugins
}

impl Opened {
    /// See [`bench::Bench::measure`].
    pub fn measure(&mut self, duration: Duration, at_least: usize) -> Result<OnCpu> {
        let window = CpuWindow::open();
        let measured = self.bench.measure(duration, at_least)?;
        let cpu_s = window.own().map(|own| own / measured.done() as f64);
        Ok(OnCpu { measured, cpu_s, others_cpu_share: window.others() })
    }

    /// The profile with the shortest total time of a few steps.
    pub fn profile(&mut self) -> Result<sparta_train::Profile> {
        let ceiling = self.ceiling.as_ref().ok_or("the case was opened without its ceiling")?;
        Ok(self.bench.profile(ceiling)?)
    }
}

/// Bytes of memory as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The peak above the resident memory at the start.
pub fn peak_above(start: Option<u64>) -> Option<f64> {
    Some(mib(machine::peak_resident()?.saturating_sub(start?)))
}
