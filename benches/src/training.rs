//! Whole training steps of a synthetic model.

use crate::machine::{self, CpuWindow};
use crate::model::{self, Shape, random};
use crate::{Result, least, median};
use serde::Serialize;
use sparta_backend_cpu::Cpu;
use sparta_core::decoder;
use sparta_core::method::Adaptation;
use sparta_core::method::options::{self, Given};
use sparta_core::model::{Precision, check_weights};
use sparta_core::plugin::PluginSet;
use sparta_core::train::graphs::Purpose;
use sparta_core::train::objective::Classification;
use sparta_core::train::{
    Batch, Encoded, HeadInit, Limits, Objective, Optimization, Profile, Session, Setup, Size, layout,
};
use sparta_core::weights::Weights;
use sparta_graph::{Backend, Plan};
use sparta_wgpu::WgpuBackend;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One cell of a table: what is trained on what.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: Shape,
    /// Sequences of a batch, and tokens of each.
    pub batch: usize,
    pub tokens: usize,
    /// `full`, `lora`, `head` (the body runs forward each step) or `sparta`.
    pub method: String,
    /// The share of the scalars of all layers and norms that SpaRTA trains.
    pub density: f64,
    pub recompute: bool,
    pub precision: Precision,
    pub device: String,
    /// The type of the weights on disk.
    pub weights: model::Weights,
    /// Threads of the CPU; `None`: all cores.
    pub threads: Option<usize>,
}

/// An opened session with its one batch.
pub struct Bench {
    pub session: Session,
    pub batch: Batch,
    /// The plan of a step.
    pub plan: Plan,
    pub trained: u64,
}

/// What a step costs.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub steps: usize,
    pub step_s: f64,
    pub step_s_min: f64,
    /// CPU seconds of a step, all threads together.
    pub cpu_s: Option<f64>,
    pub tokens_per_s: f64,
    pub gflop_per_step: f64,
    /// By the median.
    pub gflops: f64,
    pub others_cpu_share: Option<f64>,
    pub loss: f64,
}

impl Case {
    /// Opens the device and uploads the model.
    pub fn open(&self) -> Result<Bench> {
        let directory = self.shape.directory(self.weights)?;
        let plugins = Self::plugins();
        let method = plugins.method(&self.method)?;
        let mut given = BTreeMap::new();
        if self.method == "sparta" {
            let of_all = self.density * self.shape.layer_scalars() as f64 / self.shape.scalars() as f64;
            given.insert("density".to_owned(), Given::Typed(of_all.into()));
        }
        let options = options::check(method.info(), &given)?;
        let decoder = decoder::open(&directory)?;
        let weights = Weights::open(&directory)?;
        let objective: Arc<dyn Objective> = Arc::new(Classification { classes: 2 });
        let parameters = check_weights(&decoder, &weights, objective.head())?;
        let mut adaptation = Adaptation::new(method, parameters, options, 0)?;
        adaptation.precision = self.precision;
        let trained = adaptation.trained_count();
        let batch = self.random_batch(&*objective)?;
        let size = Size { rows: batch.tokens.len(), examples: self.batch };
        let setup = Setup {
            decoder,
            adaptation,
            objective,
            optimization: Optimization { weight_decay: 0.01, max_grad_norm: Some(1.0), ..Optimization::default() },
            dropout: 0.0,
            recompute: self.recompute,
            seed: 0,
            head_init: HeadInit::Normal { std: 0.02 },
            limits: Limits {
                train: Some(size),
                micro_batches: false,
                evaluate: size,
                positions: self.tokens,
                head_features: false,
                batch: self.batch,
            },
        };
        let device = self.open_device()?;
        let info = device.info();
        let arena = layout::plan_memory(&setup, &info)?.arena;
        let plan = info.plan(&setup.graphs().build(Purpose::Step(size))?, &[]);
        let session = Session::open(device, &weights, setup, &arena)?;
        Ok(Bench { session, batch, plan, trained })
    }

    /// The methods, linked in.
    fn plugins() -> PluginSet {
        let mut plugins = PluginSet::default();
        let entries = [
            sparta_method_sparta::entry,
            sparta_method_lora::entry,
            sparta_method_full::entry,
            sparta_method_head::entry,
        ];
        for entry in entries {
            // SAFETY: entry points that the SDK wrote, of crates that are part of this executable.
            unsafe { plugins.link(entry) };
        }
        plugins
    }

    fn open_device(&self) -> Result<Box<dyn Backend>> {
        if self.device == "cpu" {
            return Ok(Box::new(Cpu::new(self.threads)?));
        }
        Ok(Box::new(WgpuBackend::open(&self.device)?))
    }

    fn random_batch(&self, objective: &dyn Objective) -> Result<Batch> {
        let mut state = 2;
        let mut below = |n: usize| (random(&mut state) % n as u64) as u32;
        let examples: Vec<Encoded> = (0..self.batch)
            .map(|_| {
                let tokens = (0..self.tokens).map(|_| 1 + below(self.shape.vocab - 1)).collect();
                Encoded::class(tokens, below(2))
            })
            .collect();
        Ok(objective.pack(&examples)?)
    }
}

impl Bench {
    pub fn step(&mut self) -> Result<f64> {
        Ok(self.session.step(std::slice::from_ref(&self.batch), 1e-4)?.loss)
    }

    /// The profile with the least total of some steps.
    pub fn profile(&mut self) -> Result<Profile> {
        let mut best: Option<Profile> = None;
        for _ in 0..5 {
            let (_, profile) = self.session.step_profiled(&self.batch, 1e-4)?;
            if best.as_ref().is_none_or(|best| profile.seconds() < best.seconds()) {
                best = Some(profile);
            }
        }
        Ok(best.ok_or("no step was profiled")?)
    }

    /// Repeats the step for so long, but at least so often, after one that is not counted.
    pub fn measure(&mut self, duration: Duration, at_least: usize) -> Result<Measured> {
        let mut loss = self.step()?;
        let mut seconds = Vec::new();
        let window = CpuWindow::open();
        let start = Instant::now();
        while seconds.len() < at_least || start.elapsed() < duration {
            let start = Instant::now();
            loss = self.step()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let lengths = self.batch.lengths();
        let flops: u64 = self.plan.calls.iter().map(|call| call.packed_flops(&lengths)).sum();
        let (step_s, gflop) = (median(&seconds), flops as f64 * 1e-9);
        Ok(Measured {
            steps: seconds.len(),
            step_s,
            step_s_min: least(&seconds),
            cpu_s: window.own().map(|own| own / seconds.len() as f64),
            tokens_per_s: self.batch.real_rows as f64 / step_s,
            gflop_per_step: gflop,
            gflops: gflop / step_s,
            others_cpu_share: window.others(),
            loss,
        })
    }
}

/// Bytes of memory as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The peak above what was resident at the start.
pub fn peak_above(start: Option<u64>) -> Option<f64> {
    Some(mib(machine::peak_resident()?.saturating_sub(start?)))
}
