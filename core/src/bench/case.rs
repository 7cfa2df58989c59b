//! Whole training steps of a synthetic model: one cell of a table of results.

use super::shape::Shape;
use crate::plugin::PluginSet;
use serde::{Deserialize, Serialize};
use sparta_graph::{Backend, DType, DeviceInfo};
use sparta_model::method::options::{self, Given};
use sparta_model::method::{Adaptation, philox};
use sparta_model::{Error, Precision, Result, WeightSource, check_weights};
use sparta_plugin::method::Options;
use sparta_train::batch::split_by_budget;
use sparta_train::graphs::Purpose;
use sparta_train::objective::Classification;
use sparta_train::{
    Batch, Ceiling, Demand, Encoded, HeadInit, Objective, Optimization, Profile, Recompute, Session, SessionMemory,
    Setup, Size, StepOutput, Submitted, fit,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The learning rate for [`LR_TRAINED`] trained scalars; it is lower for more, as the change of the loss grows with
/// both.
const LR: f64 = 1e-4;
const LR_TRAINED: u64 = 1_000_000;
/// Untimed steps of [`Bench::measure`]: one to warm up, one to fill the queue, and one whose interval began with an
/// empty queue.
const UNTIMED: usize = 3;
/// Tokens and steps of [`Bench::trajectory`]: few enough for a CPU to record a model of billions of parameters.
const CHECK_TOKENS: usize = 512;
const CHECK_STEPS: usize = 3;
/// Layers that these steps have in models with more parameters than this. All their kernels have the sizes of the whole
/// model's, and full fine-tuning of them fits the memory of a laptop.
const CHECK_LAYERS: usize = 2;
const CHECK_PARAMETERS: u64 = 1_000_000_000;
/// Steps of [`Bench::profile`].
const PROFILED: usize = 5;

/// A method with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodCase {
    /// Its name in tables.
    pub name: String,
    pub plugin: String,
    pub options: Options,
}

/// A training step to measure.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: Shape,
    /// Sequences of a batch, and tokens of each.
    pub batch: usize,
    pub tokens: usize,
    /// Processes that share a step, each with such a batch.
    pub processes: usize,
    pub method: MethodCase,
    pub precision: Precision,
    pub recompute: Recompute,
    /// The type of the weights in the checkpoint.
    pub weights: DType,
}

/// A case planned for a device.
pub struct Prepared {
    setup: Setup,
    pub planned: SessionMemory,
    micro_batch_tokens: usize,
    pub trained: u64,
    /// Floating-point operations of one step.
    pub flops: u64,
}

/// An open session with its one batch.
pub struct Bench {
    pub session: Session,
    pub(super) batches: Vec<Batch>,
    /// The same sequences, divided among the processes that share a step.
    pub(super) shares: Vec<Batch>,
    /// The first sequences, for [`Bench::trajectory`].
    check: Vec<Batch>,
    pub(super) lr: f64,
    flops: u64,
}

/// The cost of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub steps: usize,
    /// The median time.
    pub step_s: f64,
    pub step_s_min: f64,
    pub tokens_per_s: f64,
    pub gflop_per_step: f64,
    /// At the median time.
    pub gflops: f64,
    pub loss: f64,
}

impl Measured {
    /// Steps during which energy was counted: the timed ones, and those before and after.
    pub fn done(&self) -> usize {
        self.steps + UNTIMED
    }
}

impl Case {
    /// The case whose first steps are compared with stored ones: of a large model, the first layers.
    pub fn checked(&self) -> Result<Case> {
        let parameters: u64 = self.shape.tensors(self.weights)?.iter().map(|tensor| tensor.numel()).sum();
        let most = if parameters > CHECK_PARAMETERS { CHECK_LAYERS } else { usize::MAX };
        Ok(Case { shape: self.shape.first_layers(most), ..self.clone() })
    }

    /// Plans the session like a run. `weights` are those of the shape.
    ///
    /// Errors: a method that is not found; a shape that is not a valid model.
    pub fn prepare(&self, plugins: &PluginSet, weights: &dyn WeightSource, device: &DeviceInfo) -> Result<Prepared> {
        let method = plugins.method(&self.method.plugin)?;
        let given = self.method.options.iter().map(|(name, value)| (name.clone(), Given::Typed(value.clone())));
        let options = options::check(
            &format!("method {}", method.info().name),
            &method.info().options,
            &given.collect::<BTreeMap<_, _>>(),
        )?;
        let decoder = self.shape.decoder(self.weights)?;
        let objective: Arc<dyn Objective> = Arc::new(Classification { classes: 2 });
        let parameters = check_weights(&decoder, weights, objective.head())?;
        let mut adaptation = Adaptation::new(method, parameters, options, 0, weights)?;
        adaptation.precision = self.precision;
        adaptation.keep_blocks(|parameter| weights.get(&parameter.name)?.blocks());
        let trained = adaptation.trained_count();
        let (sequences, shared) = (self.sequences(), self.processes > 1);
        let demand = Demand {
            batch: sequences,
            largest_batch: sequences * self.tokens,
            longest_train: self.tokens,
            longest: self.tokens,
            head_features: false,
            cache: None,
            split: shared,
            shared,
        };
        let mut setup = Setup {
            // Logits of about 1, so that the loss reveals errors in the body.
            head_init: HeadInit::Normal { std: 1.0 / (decoder.hidden_size as f64).sqrt() },
            decoder,
            adaptation,
            objective,
            optimization: Optimization { weight_decay: 0.01, max_grad_norm: Some(1.0), ..Optimization::default() },
            dropout: 0.0,
            recompute: false,
            seed: 0,
            limits: demand.limits(sequences * self.tokens),
        };
        let fit = fit(&mut setup, &demand, None, self.recompute, device)?;
        let mut prepared =
            Prepared { setup, planned: fit.planned, micro_batch_tokens: fit.micro_batch_tokens, trained, flops: 0 };
        prepared.flops = prepared.count_flops(&self.batches(&prepared, sequences, sequences)?, device)?;
        Ok(prepared)
    }

    /// Allocates everything on the device and uploads the weights.
    pub fn open(&self, prepared: Prepared, weights: &dyn WeightSource, device: Box<dyn Backend>) -> Result<Bench> {
        let (all, few) = (self.sequences(), (CHECK_TOKENS / self.tokens).clamp(1, self.batch));
        let batches = self.batches(&prepared, all, all)?;
        let shares = self.batches(&prepared, all, self.batch)?;
        let check = self.batches(&prepared, few, few)?;
        let Prepared { setup, planned, flops, trained, .. } = prepared;
        let lr = LR * LR_TRAINED as f64 / trained.max(LR_TRAINED) as f64;
        Ok(Bench { session: Session::open(device, weights, setup, &planned.arena)?, batches, shares, check, lr, flops })
    }

    /// Sequences of a step.
    fn sequences(&self) -> usize {
        self.batch * self.processes
    }

    /// Micro-batches of this many random sequences, each of at most `share`.
    fn batches(&self, prepared: &Prepared, sequences: usize, share: usize) -> Result<Vec<Batch>> {
        let mut words = philox::Stream::new(0, "bench", "tokens").words();
        let mut below = |n: usize| words.next().map_or(0, |word| word % n.max(1) as u32);
        let example = |_| {
            let tokens = (0..self.tokens).map(|_| 1 + below(self.shape.vocab - 1)).collect();
            Encoded::class(tokens, below(2))
        };
        let examples: Vec<Encoded> = (0..sequences).map(example).collect();
        let lengths = vec![self.tokens; sequences];
        let ends = split_by_budget(&lengths, prepared.micro_batch_tokens, share);
        let begins = std::iter::once(0).chain(ends.iter().copied());
        begins.zip(&ends).map(|(begin, &end)| prepared.setup.objective.pack(&examples[begin..end])).collect()
    }
}

impl Prepared {
    fn count_flops(&self, batches: &[Batch], device: &DeviceInfo) -> Result<u64> {
        let graphs = self.setup.graphs();
        let mut flops = 0;
        for (i, batch) in batches.iter().enumerate() {
            let size = Size { rows: batch.tokens.len(), examples: batch.rows.len() };
            let purpose = match (batches.len(), i) {
                (1, _) => Purpose::Step(size),
                (_, 0) => Purpose::FirstMicroBatch(size),
                _ => Purpose::MicroBatch(size),
            };
            let plan = device.plan(&graphs.build(purpose)?);
            flops += plan.calls.iter().map(|call| call.packed_flops(&batch.lengths())).sum::<u64>();
        }
        if batches.len() > 1 {
            flops += device.plan(&graphs.build(Purpose::Update)?).flops();
        }
        Ok(flops)
    }
}

impl Bench {
    /// One step, and its results.
    pub fn step(&mut self) -> Result<StepOutput> {
        self.session.step(&self.batches, self.lr)
    }

    /// Steps on the first sequences of the batch: loss and gradient norm of each.
    pub fn trajectory(&mut self) -> Result<Vec<[f64; 2]>> {
        let step = |_| self.session.step(&self.check, self.lr).map(|output| [output.loss, output.grad_norm]);
        (0..CHECK_STEPS).map(step).collect()
    }

    /// The fastest of a few profiled steps.
    ///
    /// Errors: a step of several micro-batches; a device that cannot time single calls.
    pub fn profile(&mut self, ceiling: &Ceiling) -> Result<Profile> {
        let [batch] = &self.batches[..] else {
            return Err(Error::Usage("a step of several micro-batches cannot be profiled".into()));
        };
        let mut best: Option<Profile> = None;
        for _ in 0..PROFILED {
            let (_, profile) = self.session.step_profiled(batch, self.lr, ceiling)?;
            if best.as_ref().is_none_or(|best| profile.seconds() < best.seconds()) {
                best = Some(profile);
            }
        }
        best.ok_or_else(|| Error::Training("no step was profiled".into()))
    }

    /// Repeats the step for `duration`, at least `at_least` times, after the untimed ones. As in a run, each step is
    /// submitted before the results of the previous one are read.
    pub fn measure(&mut self, duration: Duration, at_least: usize) -> Result<Measured> {
        let mut pending: VecDeque<Submitted> = VecDeque::new();
        let mut loss = self.step()?.loss;
        pending.push_back(self.session.submit_step(&self.batches, self.lr)?);
        let mut seconds = Vec::new();
        let start = Instant::now();
        let mut before = start;
        while seconds.len() < at_least || start.elapsed() < duration {
            pending.push_back(self.session.submit_step(&self.batches, self.lr)?);
            if let Some(step) = pending.pop_front() {
                loss = self.session.settle(step)?.loss;
            }
            let now = Instant::now();
            seconds.push((now - before).as_secs_f64());
            before = now;
        }
        for step in pending {
            self.session.settle(step)?;
        }
        // The first interval started with an empty queue.
        if seconds.len() > 1 {
            seconds.remove(0);
        }
        if !loss.is_finite() {
            return Err(Error::Training(format!("the loss became {loss}")));
        }
        let (step_s, gflop) = (median(&seconds), self.flops as f64 * 1e-9);
        Ok(Measured {
            steps: seconds.len(),
            step_s,
            step_s_min: seconds.iter().copied().fold(f64::INFINITY, f64::min),
            tokens_per_s: self.batches.iter().map(|batch| batch.real_rows).sum::<usize>() as f64 / step_s,
            gflop_per_step: gflop,
            gflops: gflop / step_s,
            loss,
        })
    }
}

/// The median; of two middle values, the lower one.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
