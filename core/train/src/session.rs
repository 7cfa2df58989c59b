//! A model with its method on a device: runs steps and evaluations of packed batches.

use crate::batch::Batch;
use crate::graphs::{Purpose, Size, names};
use crate::profile::Profile;
use crate::setup::Setup;
use crate::tensors::{MemoryKind, Tensors};
use crate::{Error, Result, layout};
use sparta_graph::ops::step as step_input;
use sparta_graph::{Backend, BackendError, DType, Plan, PlanId};
use sparta_model::method::philox::Stream;
use sparta_model::method::{Form, Part, Trained};
use sparta_model::{HeadKind, WeightSource};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};

/// The numbers of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutput {
    /// Mean cross-entropy over the step's targets.
    pub loss: f64,
    /// Global norm of all trained gradients before clipping.
    pub grad_norm: f64,
    /// Negative when the norm is not finite: nothing was updated then.
    pub clip_coef: f64,
}

/// A tensor of what training has changed so far: with the number of optimizer steps, all that the next step depends on
/// besides its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// `value.NAME`, and Adam's moments `m.NAME` and `v.NAME`.
    pub name: String,
    pub len: usize,
    /// What the device calls it.
    device_name: String,
}

impl StateTensor {
    pub fn new(name: String, len: usize, device_name: String) -> Self {
        StateTensor { name, len, device_name }
    }
}

/// Plans kept ready; the least recently used goes first.
const PLANS_KEPT: usize = 256;

pub struct Session {
    setup: Setup,
    tensors: Tensors,
    pub(super) in_place: bool,
    plans: HashMap<Purpose, (PlanId, u64)>,
    clock: u64,
    /// Updates done: one less than the t of the next step in Adam's bias corrections.
    steps: u64,
    /// What the device must have copied into [`names::CANARY`] by the end of a step or an evaluation.
    canary: [f32; step_input::LEN],
}

impl Session {
    /// Allocates everything on the device and uploads the weights. `arena` is that of [`layout::plan_memory`].
    ///
    /// Errors: out of memory, with the tensor's name; a device that fails.
    pub fn open(device: Box<dyn Backend>, weights: &dyn WeightSource, setup: Setup, arena: usize) -> Result<Session> {
        let in_place = device.info().in_place;
        let mut tensors = Tensors::new(device);
        for tensor in layout::tensors(&setup) {
            tensors.alloc(&tensor.name, tensor.dtype, tensor.len, tensor.kind)?;
        }
        tensors.alloc_arena(arena)?;
        layout::upload(&mut tensors, weights, &setup)?;
        Ok(Session {
            setup,
            tensors,
            in_place,
            plans: HashMap::new(),
            clock: 0,
            steps: 0,
            canary: [0.0; step_input::LEN],
        })
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn tensors(&mut self) -> &mut Tensors {
        &mut self.tensors
    }

    /// The tensors of the state, which are read one at a time: together they may be as large as three models.
    pub fn state(&self) -> Vec<StateTensor> {
        let tensor =
            |kind: &str, name: &str, len, device_name| StateTensor::new(format!("{kind}.{name}"), len, device_name);
        let trained = self.setup.adaptation.trained();
        let tensors = trained.iter().flat_map(|t| {
            let (name, len) = (&t.name, t.numel());
            let [m, v] = [names::adam_m(name), names::adam_v(name)];
            [tensor("value", name, len, name.clone()), tensor("m", name, len, m), tensor("v", name, len, v)]
        });
        tensors.collect()
    }

    pub fn read_state(&mut self, tensor: &StateTensor) -> Result<Vec<f32>> {
        self.tensors.read_f32(&tensor.device_name, tensor.len)
    }

    /// Optimizer steps done.
    pub fn optimizer_steps(&self) -> u64 {
        self.steps
    }

    /// Takes over a saved state after `steps` optimizer steps; `read` gives the values of each tensor when its turn comes.
    ///
    /// Errors: those of `read`; another number of values than the tensor has.
    pub fn set_state(&mut self, steps: u64, mut read: impl FnMut(&StateTensor) -> Result<Vec<f32>>) -> Result<()> {
        for tensor in self.state() {
            let values = read(&tensor)?;
            self.write_checked(&tensor.device_name, tensor.len, Some(&values))?;
        }
        self.steps = steps;
        self.follow_trained()
    }

    fn write_checked(&mut self, name: &str, expected: usize, values: Option<&Vec<f32>>) -> Result<()> {
        match values {
            Some(values) if values.len() == expected => self.tensors.write_f32(name, values),
            Some(values) => {
                let got = values.len();
                Err(Error::Weights(format!("{name}: expected {expected} values, got {got}")))
            }
            None => Err(Error::Weights(format!("{name} is missing"))),
        }
    }

    /// Computes the weights that follow from the trained tensors.
    fn follow_trained(&mut self) -> Result<()> {
        match self.setup.adaptation.trained().iter().any(|t| t.form == Form::Sparse) {
            true => self.run(Purpose::Scatter),
            false => Ok(()),
        }
    }

    /// One optimizer step on micro-batches whose examples together make the batch.
    pub fn step(&mut self, micro_batches: &[Batch], lr: f64) -> Result<StepOutput> {
        let targets: usize = micro_batches.iter().map(Batch::targets).sum();
        self.begin_step(lr, targets)?;
        let mut loss = 0.0;
        for (i, batch) in micro_batches.iter().enumerate() {
            let size = self.write_batch(batch)?;
            self.write_rng(i)?;
            self.run(match (micro_batches.len(), i) {
                (1, _) => Purpose::Step(size),
                (_, 0) => Purpose::FirstMicroBatch(size),
                _ => Purpose::MicroBatch(size),
            })?;
            loss += self.scalar(names::LOSS)?;
        }
        if micro_batches.len() > 1 {
            self.run(Purpose::Update)?;
        }
        self.end_step(loss)
    }

    /// [`Session::step`] on one micro-batch, with what its calls took.
    ///
    /// Errors: those of a step; a device that cannot time single calls.
    pub fn step_profiled(&mut self, batch: &Batch, lr: f64) -> Result<(StepOutput, Profile)> {
        let ceiling = self.tensors.ceiling()?;
        self.begin_step(lr, batch.targets())?;
        let size = self.write_batch(batch)?;
        self.write_rng(0)?;
        let purpose = Purpose::Step(size);
        let id = self.prepared(purpose)?;
        let times = self.tensors.run_profiled(id)?;
        let plan = Plan::build(&self.setup.graphs().build(purpose)?, self.in_place);
        let profile = Profile::new(&plan, &batch.lengths(), &times, ceiling)?;
        let loss = self.scalar(names::LOSS)?;
        Ok((self.end_step(loss)?, profile))
    }

    /// One optimizer step of the head alone on pooled hidden states, f32 `[N, hidden]`.
    pub fn head_step(&mut self, features: &[f32], labels: &[u32], lr: f64) -> Result<StepOutput> {
        self.begin_step(lr, labels.len())?;
        self.tensors.write_f32(names::FEATURES, features)?;
        self.tensors.write_u32(names::LABELS, labels)?;
        self.run(Purpose::HeadStep(labels.len()))?;
        let loss = self.scalar(names::LOSS)?;
        self.end_step(loss)
    }

    /// Class logits `[N, classes]` (empty for a causal model) and the sum of the losses of the batch's targets.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<(Vec<f32>, f64)> {
        self.write_step(0.0, 1.0)?;
        let size = self.write_batch(batch)?;
        self.run(Purpose::Evaluate(size))?;
        self.evaluation(batch.rows.len())
    }

    /// [`Session::evaluate`] from pooled hidden states.
    pub fn head_evaluate(&mut self, features: &[f32], labels: &[u32]) -> Result<(Vec<f32>, f64)> {
        self.write_step(0.0, 1.0)?;
        self.tensors.write_f32(names::FEATURES, features)?;
        self.tensors.write_u32(names::LABELS, labels)?;
        self.run(Purpose::HeadEvaluate(labels.len()))?;
        self.evaluation(labels.len())
    }

    /// Pooled hidden states after the final norm, f32 `[N, hidden]`.
    pub fn pool(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let size = self.write_batch(batch)?;
        self.run(Purpose::Pool(size))?;
        self.tensors.read_f32(names::POOLED, size.examples * self.setup.decoder.hidden_size)
    }

    /// The values of every trained tensor, by name.
    pub fn trained_values(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let trained = self.setup.adaptation.trained();
        trained.into_iter().map(|t| Ok((t.name.clone(), self.tensors.read_f32(&t.name, t.numel())?))).collect()
    }

    /// A hash of each trained tensor's values, by name: whether it has changed, without a copy of it.
    pub fn trained_hashes(&mut self) -> Result<BTreeMap<String, u64>> {
        let hash = |values: Vec<f32>| {
            let mut hasher = DefaultHasher::new();
            hasher.write(bytemuck::cast_slice(&values));
            hasher.finish()
        };
        let trained = self.setup.adaptation.trained();
        trained.into_iter().map(|t| Ok((t.name.clone(), hash(self.tensors.read_f32(&t.name, t.numel())?)))).collect()
    }

    /// Replaces the trained tensors, and the weights that follow from them.
    ///
    /// Errors: a tensor that is missing or of another length.
    pub fn set_trained_values(&mut self, values: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        for t in self.setup.adaptation.trained() {
            self.write_checked(&t.name, t.numel(), values.get(&t.name))?;
        }
        self.follow_trained()
    }

    /// Norm of the last gradient of every trained tensor, by name.
    pub fn grad_norms(&mut self) -> Result<Vec<(String, f64)>> {
        let trained = self.setup.adaptation.trained();
        let partials = sparta_graph::ops::PARTIALS;
        let norms = self.tensors.read_f32(names::NORMS, trained.len() * partials)?;
        let sums = norms.chunks(partials).map(|row| row.iter().map(|&x| f64::from(x)).sum::<f64>().sqrt());
        Ok(trained.into_iter().map(|t| t.name).zip(sums).collect())
    }

    /// Plans a graph outside the usual purposes and runs it once.
    pub fn run_graph(&mut self, graph: &sparta_graph::Graph) -> Result<()> {
        let plan = self.tensors.prepare(&Plan::build(graph, self.in_place))?;
        let result = self.tensors.run(plan);
        self.tensors.release(plan);
        result
    }

    /// Makes room for plans of graphs that are outside the usual purposes.
    pub fn reserve_arena(&mut self, bytes: usize) -> Result<()> {
        if self.tensors.arena() < bytes {
            self.forget_plans();
            self.tensors.free_arena();
            self.tensors.alloc_arena(bytes)?;
        }
        Ok(())
    }

    /// Takes a weight in this type as it is from now on, whatever the method would do with it.
    pub fn replace_weight(&mut self, position: usize, dtype: DType, bytes: &[u8]) -> Result<()> {
        self.forget_plans();
        let adaptation = &mut self.setup.adaptation;
        let parameter = &mut adaptation.parameters[position];
        self.tensors.free(&parameter.name);
        self.tensors.alloc(&parameter.name, dtype, parameter.numel() as usize, MemoryKind::Weights)?;
        self.tensors.write(&parameter.name, bytes)?;
        parameter.dtype = dtype;
        adaptation.parts[position] = Part::Frozen;
        Ok(())
    }

    /// Gradients of the batch's mean loss by the trained tensors, by name. Needs [`Limits::micro_batches`].
    pub fn gradients(&mut self, batch: &Batch) -> Result<BTreeMap<String, Vec<f32>>> {
        self.write_step(0.0, 1.0 / batch.targets().max(1) as f64)?;
        let size = self.write_batch(batch)?;
        self.write_rng(0)?;
        self.run(Purpose::FirstMicroBatch(size))?;
        let trained = self.setup.adaptation.trained();
        let read = |t: Trained| {
            let sum = self.tensors.read_f32(&names::grad_sum(&t.name), t.numel())?;
            Ok((t.name, sum))
        };
        trained.into_iter().map(read).collect()
    }

    fn begin_step(&mut self, lr: f64, targets: usize) -> Result<()> {
        if targets == 0 {
            return Err(Error::Training("a batch without any target cannot be trained on".into()));
        }
        self.write_step(lr, 1.0 / targets as f64)
    }

    fn end_step(&mut self, loss: f64) -> Result<StepOutput> {
        self.check_canary()?;
        let clip = self.tensors.read_f32(names::CLIP, 2)?;
        if clip[1] >= 0.0 {
            // A step without an update does not count in Adam's bias corrections.
            self.steps += 1;
        }
        Ok(StepOutput { loss, grad_norm: clip[0].into(), clip_coef: clip[1].into() })
    }

    fn write_step(&mut self, lr: f64, loss_scale: f64) -> Result<()> {
        let t = (self.steps + 1) as f64;
        let mut step = [0f32; step_input::LEN];
        step[step_input::LR] = lr as f32;
        step[step_input::BIAS_1] = (1.0 - f64::from(self.setup.optimizer.beta1).powf(t)) as f32;
        step[step_input::BIAS_2] = (1.0 - f64::from(self.setup.optimizer.beta2).powf(t)) as f32;
        step[step_input::LOSS_WEIGHT] = loss_scale as f32;
        self.canary = step;
        if self.setup.limits.train.is_some() {
            self.tensors.write_f32(names::LATCH, &[0.0])?;
        }
        self.tensors.write_f32(names::CANARY, &[-1.0; step_input::LEN])?;
        self.tensors.write_f32(names::STEP, &step)
    }

    /// Errors: a device that did not run what it was given, or returns something else than it computed.
    fn check_canary(&mut self) -> Result<()> {
        let got = self.tensors.read_f32(names::CANARY, step_input::LEN)?;
        if got == self.canary {
            return Ok(());
        }
        let reason = format!("it was told to copy {:?} and returned {got:?}; update its driver", self.canary);
        let device = self.tensors.device().id;
        Err(BackendError::DeviceLost { device, during: "the check of its results".into(), reason }.into())
    }

    /// A fresh random key for each micro-batch of each step.
    pub(super) fn write_rng(&mut self, micro_batch: usize) -> Result<()> {
        let stream = Stream::new(self.setup.seed, "dropout", "");
        let key = stream.block((self.steps + 1) << 20 | micro_batch as u64);
        self.tensors.write_u32(names::RNG, &key)
    }

    pub(super) fn write_batch(&mut self, batch: &Batch) -> Result<Size> {
        let size = Size { rows: batch.tokens.len(), examples: batch.rows.len() };
        self.setup.limits.check(&size, batch)?;
        self.tensors.write_u32(names::TOKENS, &batch.tokens)?;
        self.tensors.write_u32(names::SPANS, &batch.spans)?;
        self.tensors.write_u32(names::LABELS, &batch.labels)?;
        if matches!(self.setup.head, HeadKind::Classification { .. }) {
            self.tensors.write_u32(names::ROWS, &batch.rows)?;
        }
        Ok(size)
    }

    fn evaluation(&mut self, examples: usize) -> Result<(Vec<f32>, f64)> {
        self.check_canary()?;
        let loss = self.scalar(names::LOSS)?;
        match self.setup.head {
            HeadKind::Classification { classes } => {
                Ok((self.tensors.read_f32(names::LOGITS, examples * classes)?, loss))
            }
            HeadKind::CausalLm => Ok((Vec::new(), loss)),
        }
    }

    fn scalar(&mut self, name: &str) -> Result<f64> {
        Ok(self.tensors.read_f32(name, 1)?[0].into())
    }

    fn run(&mut self, purpose: Purpose) -> Result<()> {
        let plan = self.prepared(purpose)?;
        self.tensors.run(plan)
    }

    /// The plan of a purpose, prepared if it is not yet.
    fn prepared(&mut self, purpose: Purpose) -> Result<PlanId> {
        self.clock += 1;
        let plan = match self.plans.get(&purpose) {
            Some(&(plan, _)) => plan,
            None => self.prepare(purpose)?,
        };
        self.plans.insert(purpose, (plan, self.clock));
        Ok(plan)
    }

    fn prepare(&mut self, purpose: Purpose) -> Result<PlanId> {
        let graph = self.setup.graphs().build(purpose)?;
        let plan = Plan::build(&graph, self.in_place);
        if plan.arena > self.tensors.arena() {
            // Best-fit placement may need a little more for a smaller batch than for the largest.
            self.forget_plans();
            self.tensors.alloc_arena(plan.arena)?;
        }
        self.forget_oldest_plan();
        self.tensors.prepare(&plan)
    }

    fn forget_plans(&mut self) {
        for (_, (plan, _)) in self.plans.drain() {
            self.tensors.release(plan);
        }
    }

    fn forget_oldest_plan(&mut self) {
        if self.plans.len() < PLANS_KEPT {
            return;
        }
        if let Some((&purpose, &(plan, _))) = self.plans.iter().min_by_key(|(_, (_, used))| used) {
            self.tensors.release(plan);
            self.plans.remove(&purpose);
        }
    }
}
