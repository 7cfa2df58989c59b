use crate::adapters::{Adapter, UNITS_FEATURES, adapters, describe, devices, matrix_units, select, unroll};
use crate::cache::Cache as Storage;
use crate::options::Options;
use crate::pace::{Pace, work};
use crate::pipelines::Cache;
use crate::prepared::{MOST_STORAGE, PlanMemory, Prepared, PreparedStep, params_slot, prepare};
use crate::report::{Caught, Reports, scoped};
use crate::transfer::Reading;
use crate::tune::Tuning;
use crate::wait::{Submitted, block_on};
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{
    Backend, BackendError, BufferId, Call, DType, DeviceInfo, MemoryUse, Plan, PlanId, ReadId, Tuned, Work,
};
use sparta_kernels::{Bounds, Lowered, MatrixUnits, Step};
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;
use tracing::{debug, info};

/// Buffers up to this size may be bound as uniforms too: the random key is.
const UNIFORM_BYTES: u64 = 64;
/// The most bytes that one transfer stages.
const STAGING: usize = 32 << 20;

/// A device opened through wgpu.
pub struct WgpuBackend {
    pub(crate) adapter: Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    reports: Reports,
    pub(crate) bounds: Bounds<'static>,
    pipelines: Cache,
    buffers: HashMap<u64, Buffer>,
    plans: HashMap<u64, Prepared>,
    /// Scratch memory for the next plans, which share it if it is large enough, since only one plan runs at a time.
    scratch: Option<wgpu::Buffer>,
    next_id: u64,
    /// The most bytes ever in use.
    peak: u64,
    /// Bytes written since the last submission, of which wgpu keeps copies until the next.
    staged: usize,
    /// The staging buffer for the uploads of submissions.
    pub(crate) upload: Option<wgpu::Buffer>,
    /// Staging buffers for later reads.
    pub(crate) staging: RefCell<Vec<wgpu::Buffer>>,
    /// Reads requested but not fetched yet.
    reads: HashMap<u64, Reading>,
    pub(crate) pace: RefCell<Pace>,
    /// Absent where kernels are chosen by rule.
    pub(crate) tuning: Option<Tuning>,
    /// Where choices are stored.
    pub(crate) cache: Storage,
    pub(crate) tunes_software: bool,
}

pub(crate) struct Buffer {
    pub buffer: wgpu::Buffer,
    pub dtype: DType,
    pub len: usize,
    pub label: String,
}

impl WgpuBackend {
    /// Opens an adapter: `wgpu` (the best one), `wgpu:N`, or a part of its name.
    pub fn open(selector: &str) -> Result<Self, BackendError> {
        let infos: Vec<DeviceInfo> = devices().into_iter().map(|adapter| adapter.info).collect();
        let index = select(selector, &infos).map_err(|reason| other(selector, reason))?;
        Self::open_with(index, Options::default())
    }

    /// Opens the adapter at this position of [`devices`](crate::devices).
    pub fn open_with(index: usize, options: Options) -> Result<Self, BackendError> {
        let id = format!("wgpu:{index}");
        let found = adapters();
        let missing = || other(&id, format!("there is no such adapter; {} were found", found.len()));
        let raw = found.get(index).ok_or_else(missing)?;
        let (adapter, units) = options.apply(describe(index, raw), matrix_units(raw));
        let bounds = Bounds::of(&adapter.info).filter(|bounds| bounds.binding > 0);
        let binding = adapter.info.max_binding.unwrap_or_default();
        let too_low = || other(&id, format!("a binding limit of {binding} bytes is below {ALIGNMENT}"));
        let memory = adapter.limits.max_compute_workgroup_storage_size.min(MatrixUnits::MOST_MEMORY);
        let bounds = Bounds { unroll: unroll(raw), memory, ..bounds.ok_or_else(too_low)? };
        let mut features = wgpu::Features::TIMESTAMP_QUERY;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if !units.is_empty() {
            features |= UNITS_FEATURES;
            // SAFETY: the one experimental feature in use is cooperative matrices, in kernels of ours whose indices
            // stay in bounds, and no driver's product is used before it has been compared.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("sparta"),
            required_features: (raw.features() & features).difference(options.without),
            experimental_features: experimental,
            required_limits: wgpu::Limits {
                max_compute_workgroup_storage_size: memory,
                max_storage_buffer_binding_size: adapter.limits.max_storage_buffer_binding_size,
                max_buffer_size: adapter.limits.max_buffer_size,
                ..wgpu::Limits::default()
            },
            ..Default::default()
        };
        let (wanted, limits) = (descriptor.required_features, &descriptor.required_limits);
        info!("opening {} as {id} with {wanted:?}", adapter.info.name);
        debug!(?limits, ?units, "limits that are asked for, matrix units that may be used");
        let (device, queue) = block_on(raw.request_device(&descriptor))
            .map_err(|e| other(&id, format!("{} cannot be opened: {e}", adapter.info.name)))?;
        let mut backend = WgpuBackend {
            pace: RefCell::new(Pace::new(adapter.info.kind)),
            adapter,
            reports: Reports::install(&device),
            device,
            queue,
            bounds,
            pipelines: Cache::default(),
            buffers: HashMap::new(),
            plans: HashMap::new(),
            scratch: None,
            next_id: 0,
            peak: 0,
            staged: 0,
            upload: None,
            staging: RefCell::default(),
            reads: HashMap::new(),
            tuning: None,
            cache: Storage::of_user(),
            tunes_software: false,
        };
        backend.choose_units(index, &units)?;
        info!("{id} is open, 16-bit floats are multiplied in {:?}", backend.adapter.info.multiplier);
        Ok(backend)
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    pub(crate) fn id(&self) -> &str {
        &self.adapter.info.id
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Bytes of all buffers and of the plans.
    fn in_use(&self) -> u64 {
        self.buffers.values().map(|buffer| buffer.buffer.size()).sum::<u64>() + self.in_plans()
    }

    /// Bytes of scratch memory and parameters.
    fn in_plans(&self) -> u64 {
        let mut scratch: Vec<&wgpu::Buffer> = Vec::new();
        for buffer in self.plans.values().map(|plan| &plan.scratch).chain(&self.scratch) {
            if !scratch.contains(&buffer) {
                scratch.push(buffer);
            }
        }
        let parameters = self.plans.values().map(|plan| plan.parameters);
        scratch.into_iter().map(|buffer| buffer.size()).chain(parameters).sum()
    }

    pub(crate) fn buffer(&self, buffer: BufferId) -> Result<&Buffer, BackendError> {
        self.buffers.get(&buffer.0).ok_or_else(|| other(self.id(), format!("there is no buffer {}", buffer.0)))
    }

    pub(crate) fn prepared(&self, plan: PlanId) -> Result<&Prepared, BackendError> {
        self.plans.get(&plan.0).ok_or_else(|| other(self.id(), format!("there is no plan {}", plan.0)))
    }

    /// Makes a buffer of at least 4 bytes; wgpu fills it with zeros before its first use.
    pub(crate) fn create(
        &self,
        bytes: u64,
        usage: wgpu::BufferUsages,
        label: &str,
    ) -> Result<wgpu::Buffer, BackendError> {
        let size = bytes.max(4).next_multiple_of(4);
        if size > self.adapter.limits.max_buffer_size {
            let limit = self.adapter.limits.max_buffer_size;
            return Err(other(
                self.id(),
                format!(
                    "{label} takes {bytes} bytes, but the largest buffer of {} has {limit}; use a smaller \
                     micro-batch, a narrower type, or another device",
                    self.adapter.info.name
                ),
            ));
        }
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let buffer = scoped(&self.device, || self.device.create_buffer(&descriptor));
        self.check(label)?;
        buffer.map_err(|caught| match caught {
            Caught::OutOfMemory => BackendError::OutOfMemory { device: self.id().into(), what: label.into(), bytes },
            Caught::Other(reason) => self.op(label, reason),
        })
    }

    /// Scratch memory of at least this many bytes. Plans with less keep theirs.
    fn shared_scratch(&mut self, bytes: u64) -> Result<wgpu::Buffer, BackendError> {
        match &self.scratch {
            Some(scratch) if scratch.size() >= bytes => Ok(scratch.clone()),
            _ => Ok(self.scratch.insert(self.create(bytes, wgpu::BufferUsages::STORAGE, "scratch memory")?).clone()),
        }
    }

    pub(crate) fn op(&self, op: &str, reason: impl Into<String>) -> BackendError {
        BackendError::Op { device: self.id().into(), op: op.into(), reason: reason.into() }
    }

    /// Waits until the device has finished everything.
    pub(crate) fn wait(&self, during: &str) -> Result<(), BackendError> {
        let waited = Submitted::new(&self.queue, self.queue.submit([])).wait(&self.device);
        self.told(waited, during)
    }

    /// Returns any error that wgpu has reported; polling reports the loss of a device.
    pub(crate) fn check(&self, during: &str) -> Result<(), BackendError> {
        self.told(self.device.poll(wgpu::PollType::Poll).map(|_| ()), during)
    }

    /// Converts the result of a poll; errors that the device reported take precedence.
    pub(crate) fn told(&self, polled: Result<(), wgpu::PollError>, during: &str) -> Result<(), BackendError> {
        self.reports.check(self.id(), during)?;
        polled.map_err(|e| self.op(during, e.to_string()))
    }

    /// The byte at which element `offset` begins, checked to have `bytes` bytes behind it in the buffer.
    pub(crate) fn range(&self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<u64, BackendError> {
        let size = buffer.dtype.size();
        let fits = offset.checked_mul(size).is_some_and(|start| {
            start.is_multiple_of(4) && start.checked_add(bytes).is_some_and(|end| end <= buffer.len * size)
        });
        if fits && bytes.is_multiple_of(size) {
            return Ok((offset * size) as u64);
        }
        Err(self.op(
            &buffer.label,
            format!("{bytes} bytes from element {offset} on are not part of {} {}", buffer.len, buffer.dtype),
        ))
    }

    /// The steps of each call with their bindings, and the bytes of their parameters.
    pub(crate) fn prepare_calls(
        &mut self,
        plan: &Plan,
        lowered: &[Lowered],
        arena: Vec<wgpu::Buffer>,
        externals: Vec<(wgpu::Buffer, u64)>,
        scratch: wgpu::Buffer,
    ) -> Result<(Vec<Vec<PreparedStep>>, u64), BackendError> {
        let params: Vec<u8> = lowered.iter().flat_map(|l| &l.steps).flat_map(params_slot).collect();
        let unused = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let memory = PlanMemory {
            plan,
            arena,
            externals,
            scratch,
            unused: self.create((MOST_STORAGE * ALIGNMENT) as u64, unused, "unused")?,
            params: self.create(params.len() as u64, uniform, "parameters")?,
        };
        self.queue.write_buffer(&memory.params, 0, &params);
        let (mut calls, mut slot) = (Vec::new(), 0);
        for (call, lowered) in plan.calls.iter().zip(lowered) {
            calls.push(self.prepare_call(call, &lowered.steps, &memory, &mut slot)?);
        }
        Ok((calls, memory.params.size()))
    }

    fn prepare_call(
        &mut self,
        call: &Call,
        steps: &[Step],
        memory: &PlanMemory,
        slot: &mut u64,
    ) -> Result<Vec<PreparedStep>, BackendError> {
        let name = format!("{} ({})", call.op.name(), call.label);
        let mut prepared = Vec::new();
        for step in steps {
            let made = prepare(&self.device, &mut self.pipelines, &name, step, memory, slot);
            prepared.push(made.map_err(|caught| match caught {
                Caught::OutOfMemory => BackendError::OutOfMemory {
                    device: self.id().into(),
                    what: format!("the bindings of {name}"),
                    bytes: 0,
                },
                Caught::Other(reason) => self.op(&name, reason),
            })?);
        }
        Ok(prepared)
    }
}

/// A browser frees dropped buffers only when it collects garbage, and that does not depend on the device's memory.
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
impl Drop for WgpuBackend {
    fn drop(&mut self) {
        self.device.destroy();
    }
}

pub(crate) fn other(device: &str, reason: impl Into<String>) -> BackendError {
    BackendError::Other { device: device.into(), reason: reason.into() }
}

impl Backend for WgpuBackend {
    fn info(&self) -> DeviceInfo {
        self.adapter.info.clone()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError> {
        let too_many = || other(self.id(), format!("{label}: {len} elements exceed the address space"));
        let bytes = len.checked_mul(dtype.size()).ok_or_else(too_many)? as u64;
        let mut usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        if bytes <= UNIFORM_BYTES {
            usage |= wgpu::BufferUsages::UNIFORM;
        }
        let buffer = self.create(bytes, usage, label)?;
        let id = self.new_id();
        self.buffers.insert(id, Buffer { buffer, dtype, len, label: label.into() });
        self.peak = self.peak.max(self.in_use());
        Ok(BufferId(id))
    }

    fn free(&mut self, buffer: BufferId) {
        self.buffers.remove(&buffer.0);
    }

    fn memory_use(&self) -> Option<MemoryUse> {
        Some(MemoryUse { in_use: self.in_use(), peak: self.peak, plans: self.in_plans() })
    }

    fn autotune(&mut self, known: Option<&Tuned>) -> Option<String> {
        self.start_tuning(known)
    }

    fn tuned(&self) -> Option<Tuned> {
        self.chosen()
    }

    fn supports(&self, plan: &Plan) -> Result<(), BackendError> {
        sparta_kernels::check(plan, self.bounds).map_err(|reason| other(self.id(), reason))
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        let target = self.buffer(buffer)?;
        let start = self.range(target, offset, data.len())?;
        let (raw, label) = (target.buffer.clone(), target.label.clone());
        let words = data.len() / 4 * 4;
        let mut tail = [0; 4];
        let odd = words < data.len();
        if odd && start as usize + data.len() < target.len * target.dtype.size() {
            // The last element shares its word with one that must not change.
            self.read_bytes(&raw, &label, start + words as u64, &mut tail)?;
        }
        tail[..data.len() - words].copy_from_slice(&data[words..]);
        for (i, chunk) in data[..words].chunks(STAGING).enumerate() {
            self.queue.write_buffer(&raw, start + (i * STAGING) as u64, chunk);
            self.staged += chunk.len();
            if self.staged >= STAGING {
                self.wait(&label)?;
                self.staged = 0;
            }
        }
        if odd {
            self.queue.write_buffer(&raw, start + words as u64, &tail);
        }
        self.check(&label)
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError> {
        let source = self.buffer(buffer)?;
        let start = self.range(source, offset, out.len())?;
        for (i, chunk) in out.chunks_mut(STAGING).enumerate() {
            self.read_bytes(&source.buffer, &source.label, start + (i * STAGING) as u64, chunk)?;
        }
        self.staged = 0;
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError> {
        if externals.len() != plan.externals.len() {
            let (got, wanted) = (externals.len(), plan.externals.len());
            return Err(other(self.id(), format!("the plan has {wanted} external tensors, got {got} buffers")));
        }
        if arena.len() != plan.arena_buffers().len() {
            let (got, wanted) = (arena.len(), plan.arena_buffers().len());
            return Err(other(self.id(), format!("the arena has {wanted} segments, got {got} buffers")));
        }
        let arena = arena
            .iter()
            .zip(plan.arena_buffers())
            .map(|(&buffer, &bytes)| Ok(self.sized(buffer, 0, bytes, DType::F32, "the arena")?.0))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let externals = externals
            .iter()
            .zip(&plan.externals)
            .map(|(&buffer, external)| {
                let (bytes, dtype) = (external.ty.bytes(), external.ty.dtype);
                self.sized(buffer, external.offset, bytes, dtype, &external.name)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let lowered = self.lower_plan(plan)?;
        let scratch = lowered.iter().map(|l| l.scratch).max().unwrap_or(0);
        let scratch = self.shared_scratch(scratch as u64)?;
        let (calls, parameters) = self.prepare_calls(plan, &lowered, arena, externals, scratch.clone())?;
        let (mut steps, mut ends, mut works) = (Vec::new(), Vec::new(), Vec::new());
        for (call, prepared) in plan.calls.iter().zip(calls) {
            let work = work(call) / prepared.len() as f64;
            steps.extend(prepared);
            works.resize(steps.len(), work);
            ends.push(steps.len());
        }
        self.check("prepare")?;
        let id = self.new_id();
        self.plans.insert(id, Prepared { steps, work: works, ends, parameters, scratch });
        self.peak = self.peak.max(self.in_use());
        Ok(PlanId(id))
    }

    fn run(&mut self, plan: PlanId) -> Result<(), BackendError> {
        let prepared = self.prepared(plan)?;
        let encoder = self.device.create_command_encoder(&Default::default());
        let encoder = self.encode_paced(encoder, &prepared.steps, &prepared.work)?;
        self.submit_encoded(encoder)?;
        self.staged = 0;
        self.check("run")
    }

    fn submit(&mut self, work: &[Work]) -> Result<(), BackendError> {
        if Self::fits_one_upload(work, STAGING) {
            self.staged = 0;
            return self.submit_together(work);
        }
        for piece in work {
            match *piece {
                Work::Write { buffer, offset, data } => self.write(buffer, offset, data)?,
                Work::Run(plan) => self.run(plan)?,
            }
        }
        Ok(())
    }

    fn request(&mut self, buffer: BufferId, offset: usize, bytes: usize) -> Result<ReadId, BackendError> {
        let source = self.buffer(buffer)?;
        let start = self.range(source, offset, bytes)?;
        let reading = self.start_read(&source.buffer, &source.label, start, bytes)?;
        let id = self.new_id();
        self.reads.insert(id, reading);
        Ok(ReadId::Pending(id))
    }

    fn fetch(&mut self, read: ReadId, out: &mut [u8]) -> Result<(), BackendError> {
        let reading = match read {
            ReadId::Pending(id) => self.reads.remove(&id),
            ReadId::Ready(_) => None,
        };
        let reading = reading.ok_or_else(|| other(self.id(), "the read was not requested from this device"))?;
        self.finish_read(reading, out)
    }

    fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>, BackendError> {
        let prepared = self.prepared(plan)?;
        let starts = [0].iter().chain(&prepared.ends);
        let times = self.time_calls(starts.zip(&prepared.ends).map(|(&start, &end)| &prepared.steps[start..end]), 1)?;
        self.staged = 0;
        Ok(times)
    }

    fn release(&mut self, plan: PlanId) {
        self.plans.remove(&plan.0);
    }
}

impl WgpuBackend {
    /// A buffer that must hold at least `bytes` of `dtype` from element `offset` on, and the byte at which those begin.
    fn sized(
        &self,
        id: BufferId,
        offset: usize,
        bytes: usize,
        dtype: DType,
        what: &str,
    ) -> Result<(wgpu::Buffer, u64), BackendError> {
        let buffer = self.buffer(id)?;
        let has = buffer.len * buffer.dtype.size();
        let begin = offset.saturating_mul(dtype.size());
        if has >= begin.saturating_add(bytes) && buffer.dtype == dtype && begin.is_multiple_of(ALIGNMENT) {
            return Ok((buffer.buffer.clone(), begin as u64));
        }
        Err(self.op(
            "prepare",
            format!(
                "{what} needs {bytes} bytes of {dtype} from byte {begin} on, but its buffer has {has} of {}",
                buffer.dtype
            ),
        ))
    }
}
