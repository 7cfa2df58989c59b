//! A model with its method on a device, on which it runs steps and evaluations of packed batches.

use crate::batch::{Batch, Labels, Size};
use crate::graphs::{Purpose, StepNumbers, names, results};
use crate::layout::slot_name;
use crate::setup::Setup;
use crate::tensors::{DeviceTensors, MemoryKind, make_room};
use crate::{Error, Result, layout};
use sparta_graph::ops::{PARTIALS, step as step_input};
use sparta_graph::{Backend, BackendError, DType, DeviceInfo, Plan, PlanId};
use sparta_model::method::adaptation::delta_name;
use sparta_model::method::layers::base_name;
use sparta_model::method::philox::Stream;
use sparta_model::method::{TrainMode, Trained};
use sparta_model::{WeightSource, from_f32, to_f32};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};

/// A tensor that training changes. Together with the number of optimizer steps, these are all that the next step
/// depends on apart from its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// `value.NAME`, and `SLOT.NAME` for each slot of the optimizer.
    pub name: String,
    pub len: usize,
    /// Its name in messages.
    pub title: String,
    /// Its name on the device.
    device_name: String,
}

impl StateTensor {
    pub fn new(name: String, len: usize, title: String, device_name: String) -> Self {
        StateTensor { name, len, title, device_name }
    }
}

/// The state as adapters store it: values by name, and the index sets that the method may have changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub values: BTreeMap<String, Vec<f32>>,
    pub indices: BTreeMap<String, Vec<u32>>,
}

/// The most prepared plans to keep; the least recently used is dropped first.
const PLANS_KEPT: usize = 256;

pub struct Session {
    setup: Setup,
    tensors: DeviceTensors,
    pub(crate) device: DeviceInfo,
    plans: HashMap<Purpose, (PlanId, u64)>,
    clock: u64,
    /// Updates done, including those submitted but not settled.
    pub(crate) steps: u64,
    /// Steps submitted but not settled.
    pub(crate) in_flight: usize,
    /// How many micro-batches are in the gradient sums.
    pub(crate) accumulated: usize,
    pub(crate) targets: usize,
}

impl Session {
    /// Allocates everything on the device and uploads the weights. `arena` are the segments of [`layout::plan_memory`].
    ///
    /// Errors: an operation that the backend lacks; out of memory, with the tensor's name; a device that fails.
    pub fn open(
        device: Box<dyn Backend>,
        weights: &dyn WeightSource,
        setup: Setup,
        arena: &[usize],
    ) -> Result<Session> {
        let info = device.info();
        layout::check_support(&setup, device.as_ref())?;
        let mut tensors = DeviceTensors::new(device);
        for tensor in layout::tensors(&setup) {
            match &tensor.part_of {
                Some((whole, begin)) => tensors.name_part(&tensor.name, whole, *begin, tensor.len)?,
                None => tensors.alloc(&tensor.name, tensor.dtype, tensor.len, tensor.kind)?,
            }
        }
        tensors.alloc_arena(arena)?;
        layout::upload(&mut tensors, weights, &setup)?;
        let mut session = Session {
            setup,
            tensors,
            device: info,
            plans: HashMap::new(),
            clock: 0,
            steps: 0,
            in_flight: 0,
            accumulated: 0,
            targets: 0,
        };
        if (0..session.setup.adaptation.parameters.len()).any(|i| session.setup.adaptation.is_shadowed(i)) {
            session.follow_trained()?;
        }
        Ok(session)
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn tensors(&mut self) -> &mut DeviceTensors {
        &mut self.tensors
    }

    /// The tensors of the state. Read one at a time: together they may be as large as three models.
    pub fn state(&self) -> Vec<StateTensor> {
        let slots = self.setup.optimization.optimizer.slots();
        let trained = self.setup.adaptation.trained().len();
        let stored = self.setup.adaptation.stored();
        let tensors = stored.iter().enumerate().flat_map(|(i, t)| {
            let (name, len) = (&t.name, t.numel());
            let value = StateTensor::new(format!("value.{name}"), len, name.clone(), name.clone());
            let slots = slots.iter().filter(move |_| i < trained).map(move |slot| {
                let device_name = slot_name(slot.name, name);
                StateTensor::new(device_name.clone(), len, format!("the {} of {name}", slot.title), device_name)
            });
            std::iter::once(value).chain(slots)
        });
        tensors.collect()
    }

    pub fn read_state(&mut self, tensor: &StateTensor) -> Result<Vec<f32>> {
        self.tensors.read_floats(&tensor.device_name)
    }

    /// The number of optimizer steps done.
    pub fn optimizer_steps(&self) -> u64 {
        self.steps
    }

    /// Restores a saved state after `steps` optimizer steps; `read` gives the values of each tensor in turn.
    ///
    /// Errors: those of `read`; a wrong number of values.
    pub fn set_state(&mut self, steps: u64, mut read: impl FnMut(&StateTensor) -> Result<Vec<f32>>) -> Result<()> {
        for tensor in self.state() {
            let values = read(&tensor)?;
            self.write_checked(&tensor.device_name, tensor.len, Some(&values))?;
        }
        (self.steps, self.in_flight, self.accumulated) = (steps, 0, 0);
        self.follow_trained()
    }

    fn write_checked(&mut self, name: &str, expected: usize, values: Option<&Vec<f32>>) -> Result<()> {
        match values {
            Some(values) if values.len() == expected => self.tensors.write_floats(name, values),
            Some(values) => {
                let got = values.len();
                Err(Error::Weights(format!("{name}: expected {expected} values, got {got}")))
            }
            None => Err(Error::Weights(format!("{name} is missing"))),
        }
    }

    /// Recomputes the weights that depend on trained tensors.
    pub(crate) fn follow_trained(&mut self) -> Result<()> {
        let adaptation = &self.setup.adaptation;
        match adaptation.trained().iter().any(|t| adaptation.is_followed(t)) {
            true => self.run(Purpose::Follow),
            false => Ok(()),
        }
    }

    /// The objective's outputs, `[N, outputs]`, and the sum of the losses of the batch's targets.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<(Vec<f32>, f64)> {
        let plan = self.prepared(Purpose::Evaluate(self.size_of(batch)?))?;
        self.queue_batch(batch)?;
        self.evaluation(plan, batch.rows.len())
    }

    /// Like [`Session::evaluate`], from pooled hidden states.
    pub fn head_evaluate(&mut self, features: &[f32], batch: &Batch) -> Result<(Vec<f32>, f64)> {
        let plan = self.prepared(Purpose::HeadEvaluate(batch.rows.len()))?;
        self.tensors.queue_write(names::FEATURES, features)?;
        self.queue_labels(batch)?;
        self.evaluation(plan, batch.rows.len())
    }

    /// Pooled hidden states after the final norm, f32 `[N, hidden]`.
    pub fn pool(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let size = self.size_of(batch)?;
        let plan = self.prepared(Purpose::Pool(size))?;
        self.queue_batch(batch)?;
        self.tensors.queue_run(plan);
        self.tensors.read_f32(names::POOLED, size.examples * self.setup.decoder.hidden_size)
    }

    /// The values that an adapter stores, by name: of all trained tensors, and of others that the method may set.
    pub fn trained_values(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let stored = self.setup.adaptation.stored();
        stored.into_iter().map(|t| Ok((t.name.clone(), self.tensors.read_f32(&t.name, t.numel())?))).collect()
    }

    /// A hash of each trained tensor's values, by name, to detect changes without a copy.
    pub fn trained_hashes(&mut self) -> Result<BTreeMap<String, u64>> {
        let hash = |values: Vec<f32>| {
            let mut hasher = DefaultHasher::new();
            hasher.write(bytemuck::cast_slice(&values));
            hasher.finish()
        };
        let trained = self.setup.adaptation.trained();
        trained.into_iter().map(|t| Ok((t.name.clone(), hash(self.tensors.read_f32(&t.name, t.numel())?)))).collect()
    }

    /// The trained values, and the index sets that may have changed.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        Ok(Snapshot { values: self.trained_values()?, indices: self.setup.adaptation.changed_indices() })
    }

    /// Restores a snapshot of this model; `weights` are those that the session was opened with.
    ///
    /// Errors: those of [`Session::set_indices`] and [`Session::set_trained_values`].
    pub fn restore(&mut self, weights: &dyn WeightSource, snapshot: &Snapshot) -> Result<()> {
        self.set_indices(weights, &snapshot.indices)?;
        self.set_trained_values(&snapshot.values)
    }

    /// Restores index sets by parameter name; values must be set after that. All other elements get the model's values.
    ///
    /// Errors: a parameter without an index set; a set that cannot replace the current one.
    pub fn set_indices(&mut self, weights: &dyn WeightSource, sets: &BTreeMap<String, Vec<u32>>) -> Result<()> {
        for (name, indices) in sets {
            let position = self.setup.adaptation.position(name);
            let position = position.filter(|&i| matches!(self.setup.adaptation.modes[i], TrainMode::Sparse(_)));
            let position = position.ok_or_else(|| {
                Error::Weights(format!("there is an index set for {name}, but none of its elements are trained"))
            })?;
            self.setup.adaptation.check_indices(position, indices).map_err(Error::Weights)?;
            self.put_indices(weights, position, indices.clone())?;
        }
        Ok(())
    }

    /// Resets a weight to the model's values, with a new index set.
    pub(crate) fn put_indices(&mut self, weights: &dyn WeightSource, position: usize, indices: Vec<u32>) -> Result<()> {
        if let TrainMode::Sparse(set) = &mut self.setup.adaptation.modes[position]
            && set.indices != indices
        {
            set.indices = indices;
            layout::upload_parameter(&mut self.tensors, weights, &self.setup, position)?;
        }
        Ok(())
    }

    /// Replaces the trained tensors and the weights that depend on them.
    ///
    /// Errors: a tensor is missing or has the wrong length.
    pub fn set_trained_values(&mut self, values: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        for t in self.setup.adaptation.stored() {
            self.write_checked(&t.name, t.numel(), values.get(&t.name))?;
        }
        self.follow_trained()
    }

    /// The norm of each trained tensor's last gradient, by name.
    pub fn grad_norms(&mut self) -> Result<Vec<(String, f64)>> {
        let names: Vec<String> =
            self.setup.buckets().into_iter().flat_map(|bucket| bucket.parts).map(|part| part.trained.name).collect();
        let norms = self.tensors.read_f32(names::NORMS, names.len() * PARTIALS)?;
        let sums = norms.chunks(PARTIALS).map(|row| row.iter().map(|&x| f64::from(x)).sum::<f64>().sqrt());
        Ok(names.into_iter().zip(sums).collect())
    }

    /// Runs a graph outside the usual purposes once; [`Session::reserve_arena`] must have made room for it.
    pub fn run_graph(&mut self, graph: &sparta_graph::Graph) -> Result<()> {
        let plan = self.plan(graph);
        let plan = self.tensors.prepare(&plan)?;
        let result = self.tensors.run(plan);
        self.tensors.release(plan);
        result
    }

    /// Makes room for the plan of a graph outside the usual purposes.
    pub fn reserve_arena(&mut self, graph: &sparta_graph::Graph) -> Result<()> {
        self.make_room(&self.plan(graph))
    }

    /// The plan of a graph in this session's arena and precision.
    fn plan(&self, graph: &sparta_graph::Graph) -> Plan {
        let plan = self.device.plan_within(graph, &self.tensors.arena());
        Plan { tf32: self.setup().adaptation.precision.tf32, ..plan }
    }

    fn make_room(&mut self, plan: &Plan) -> Result<()> {
        if !self.tensors.has_room(plan) {
            self.tensors.submit()?;
            self.forget_plans();
            let mut segments = self.tensors.arena();
            make_room(&mut segments, plan);
            self.tensors.alloc_arena(&segments)?;
        }
        Ok(())
    }

    /// The values of a weight as products read it, except for what is added to it.
    pub fn read_weight(&mut self, position: usize) -> Result<Vec<f32>> {
        let adaptation = &self.setup.adaptation;
        let name = adaptation.parameters[position].name.clone();
        let Some(op) = adaptation.decoding(position) else { return self.tensors.read_floats(&name) };
        let chosen = match &adaptation.modes[position] {
            TrainMode::Sparse(set) if op.overlay => set.indices.clone(),
            _ => Vec::new(),
        };
        let mut values = vec![0f32; op.rows * op.columns];
        op.blocks.decode(&self.tensors.read_bytes(&name)?, &mut values);
        if !chosen.is_empty() {
            let (base, delta) = (self.tensors.read_floats(&base_name(&name))?, delta_name(&name));
            let delta = self.tensors.read_floats(&delta)?;
            for (&at, (base, delta)) in chosen.iter().zip(base.iter().zip(delta)) {
                values[at as usize] = base + delta;
            }
        }
        let rounded = from_f32(op.output, &values).and_then(|bytes| to_f32(op.output, &bytes));
        rounded.ok_or_else(|| Error::Training(format!("`{name}` is decoded to {}", op.output)))
    }

    /// Uses these values for a weight from now on, whatever the method would do with it.
    pub fn replace_weight(&mut self, position: usize, dtype: DType, bytes: &[u8]) -> Result<()> {
        self.forget_plans();
        let adaptation = &mut self.setup.adaptation;
        let parameter = &mut adaptation.parameters[position];
        self.tensors.free(&parameter.name);
        self.tensors.alloc(&parameter.name, dtype, parameter.numel() as usize, MemoryKind::Weights)?;
        self.tensors.write(&parameter.name, bytes)?;
        parameter.dtype = dtype;
        adaptation.formats.remove(&position);
        adaptation.modes[position] = TrainMode::Frozen;
        Ok(())
    }

    /// Gradients of the batch's mean loss with respect to the trained tensors, by name. Needs
    /// [`SessionLimits::micro_batches`].
    pub fn gradients(&mut self, batch: &Batch) -> Result<BTreeMap<String, Vec<f32>>> {
        let plan = self.prepared(Purpose::FirstMicroBatch(self.size_of(batch)?))?;
        let numbers = self.step_numbers(0.0, batch.targets().max(1));
        self.queue_numbers(&numbers)?;
        self.queue_rng(0)?;
        self.queue_batch(batch)?;
        self.tensors.run(plan)?;
        let trained = self.setup.adaptation.trained();
        let read = |t: Trained| {
            let sum = self.tensors.read_f32(&names::grad_sum(&t.name), t.numel())?;
            Ok((t.name, sum))
        };
        trained.into_iter().map(read).collect()
    }

    /// The host's scalars for the next step on this many targets.
    pub(crate) fn step_numbers(&self, lr: f64, targets: usize) -> StepNumbers {
        let mut step = [0f32; step_input::LEN];
        step[step_input::LR] = lr as f32;
        let numbers = self.setup.optimization.optimizer.numbers(self.steps + 1);
        step[step_input::OPTIMIZER..step_input::OPTIMIZER + numbers.len()].copy_from_slice(&numbers);
        step[step_input::LOSS_WEIGHT] = (1.0 / targets as f64) as f32;
        step
    }

    /// Queues the step's numbers, and overwrites the results so that old ones cannot be taken for new ones.
    pub(crate) fn queue_numbers(&mut self, numbers: &StepNumbers) -> Result<()> {
        self.tensors.queue_write(names::RESULTS, &vec![-1f32; results::of_step().1])?;
        self.tensors.queue_write(names::STEP, numbers)
    }

    /// Errors: the device did not run what it was given, or did not return what it computed.
    pub(crate) fn check_canary(&mut self, expected: &StepNumbers, got: &[f32]) -> Result<()> {
        if got == expected {
            return Ok(());
        }
        let reason = format!("it should have copied {expected:?}, but returned {got:?}; update its driver");
        let device = self.tensors.device().id;
        Err(BackendError::DeviceLost { device, during: "the check of its results".into(), reason }.into())
    }

    /// Queues a new random key for each micro-batch of each step.
    pub(crate) fn queue_rng(&mut self, micro_batch: usize) -> Result<()> {
        let stream = Stream::new(self.setup.seed, "dropout", "");
        let key = stream.block((self.steps + 1) << 20 | micro_batch as u64);
        self.tensors.queue_write(names::RNG, &key)
    }

    /// The size of a batch.
    ///
    /// Errors: it is larger than planned.
    pub(crate) fn size_of(&self, batch: &Batch) -> Result<Size> {
        let size = Size { rows: batch.tokens.len(), examples: batch.rows.len() };
        self.setup.limits.check(&size, batch)?;
        Ok(size)
    }

    pub(crate) fn queue_labels(&mut self, batch: &Batch) -> Result<()> {
        match &batch.labels {
            Labels::Ids(ids) => self.tensors.queue_write(names::LABELS, ids),
            Labels::Numbers(numbers) => self.tensors.queue_write(names::LABELS, numbers),
        }
    }

    pub(crate) fn queue_batch(&mut self, batch: &Batch) -> Result<()> {
        self.tensors.queue_write(names::TOKENS, &batch.tokens)?;
        self.tensors.queue_write(names::SPANS, &batch.spans)?;
        self.queue_labels(batch)?;
        if self.setup.objective.pools() {
            self.tensors.queue_write(names::ROWS, &batch.rows)?;
        }
        Ok(())
    }

    /// Runs an evaluation whose batch is queued.
    fn evaluation(&mut self, plan: PlanId, examples: usize) -> Result<(Vec<f32>, f64)> {
        let numbers = self.step_numbers(0.0, 1);
        self.queue_numbers(&numbers)?;
        self.tensors.queue_run(plan);
        let logits = examples * self.setup.objective.outputs();
        let ([loss, canary, begin], len) = results::of_evaluation(logits);
        let values = self.tensors.read_f32(names::RESULTS, len)?;
        self.check_canary(&numbers, &values[canary..canary + step_input::LEN])?;
        Ok((values[begin..begin + logits].to_vec(), values[loss].into()))
    }

    fn run(&mut self, purpose: Purpose) -> Result<()> {
        let plan = self.prepared(purpose)?;
        self.tensors.run(plan)
    }

    /// The plan of a purpose, prepared on first use.
    pub(crate) fn prepared(&mut self, purpose: Purpose) -> Result<PlanId> {
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
        let plan = self.plan(&graph);
        self.make_room(&plan)?;
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
