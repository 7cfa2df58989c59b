use crate::overrides::TENSOR_CORES;
use crate::pieces::{Device, Pieces};
use crate::plan::{Addresses, Cache, Step};
use crate::products::SAMPLED_COST;
use crate::{Failure, GraphId, MAX_BINDING, Machine, Reading};
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{
    Backend, BackendError, BufferId, Call, DType, DeviceInfo, DeviceKind, MemoryUse, Plan, PlanId, ReadId,
};
use sparta_kernels::Bounds;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The unit that the bytes of an allocation are rounded up to.
const GRANULE: usize = 256;

/// The backend on a machine.
pub struct CudaBackend {
    machine: Box<dyn Machine>,
    info: DeviceInfo,
    device: Device,
    cache: Cache,
    buffers: HashMap<u64, Buffer>,
    plans: HashMap<u64, Prepared>,
    /// Scratch memory for the next plans, which share it if it is large enough, since only one plan runs at a time.
    scratch: Option<Arc<Scratch>>,
    /// What calls bind for operands they do not have.
    unused: u64,
    reads: HashMap<u64, (Reading, usize)>,
    next_id: u64,
    memory: MemoryUse,
    /// Why the device is lost, once it is.
    lost: Option<String>,
    /// Whether the user was told that plans cannot be recorded.
    warned: bool,
}

struct Buffer {
    address: u64,
    bytes: usize,
    dtype: DType,
    len: usize,
    label: String,
}

struct Scratch {
    address: u64,
    bytes: usize,
}

struct Prepared {
    calls: Vec<PreparedCall>,
    scratch: Arc<Scratch>,
    run: Run,
}

/// How a plan runs next.
#[derive(Clone, Copy)]
enum Run {
    /// Step by step, which loads what libraries load on first use and a recording could not.
    First,
    /// Recorded, if it has steps enough for that to save time.
    Second,
    Recorded(GraphId),
    /// Step by step, as it cannot be recorded or is too short.
    Steps,
}

/// The fewest steps of a plan that is recorded: queueing a step costs the host a few microseconds, and so does queueing
/// a recording.
const RECORDED: usize = 4;

struct PreparedCall {
    name: String,
    steps: Vec<Step>,
}

impl CudaBackend {
    /// Errors: the machine has no memory left at all.
    pub fn new(mut machine: Box<dyn Machine>) -> Result<Self, BackendError> {
        let mut info = machine.info();
        let binding = info.max_binding.map_or(MAX_BINDING, |most| most.min(MAX_BINDING));
        let mut bounds = Bounds::new(DeviceKind::DiscreteGpu, usize::try_from(binding).unwrap_or(usize::MAX));
        // What a kernel may declare on every card.
        bounds.memory = 48 << 10;
        bounds.sampled_cost = *info.sampled_cost.get_or_insert(SAMPLED_COST);
        info.rounds_in_attention = machine.capability() >= TENSOR_CORES;
        let device = Device { bounds, capability: machine.capability(), tf32: false };
        let unused = machine.alloc(GRANULE).map_err(|failure| named(&info.id, "opening", failure))?;
        Ok(CudaBackend {
            machine,
            info,
            device,
            cache: Cache::default(),
            buffers: HashMap::new(),
            plans: HashMap::new(),
            scratch: None,
            unused,
            reads: HashMap::new(),
            next_id: 0,
            memory: MemoryUse { in_use: GRANULE as u64, peak: GRANULE as u64, plans: GRANULE as u64 },
            lost: None,
            warned: false,
        })
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn other(&self, reason: impl Into<String>) -> BackendError {
        BackendError::Other { device: self.info.id.clone(), reason: reason.into() }
    }

    fn op(&self, op: &str, reason: impl Into<String>) -> BackendError {
        BackendError::Op { device: self.info.id.clone(), op: op.into(), reason: reason.into() }
    }

    /// The error for a failure of `what`; remembers the loss of the device.
    fn failed(&mut self, what: &str, failure: Failure) -> BackendError {
        if let Failure::Lost(reason) = &failure {
            self.lost = Some(reason.clone());
        }
        named(&self.info.id, what, failure)
    }

    /// Errors: the device was lost earlier.
    fn alive(&self, during: &str) -> Result<(), BackendError> {
        let Some(reason) = &self.lost else { return Ok(()) };
        Err(named(&self.info.id, during, Failure::Lost(reason.clone())))
    }

    fn buffer(&self, buffer: BufferId) -> Result<&Buffer, BackendError> {
        self.buffers.get(&buffer.0).ok_or_else(|| self.other(format!("there is no buffer {}", buffer.0)))
    }

    /// The address of `bytes` bytes from element `offset` on, checked against the buffer, and the buffer's label.
    fn range(&self, buffer: BufferId, offset: usize, bytes: usize) -> Result<(u64, String), BackendError> {
        let buffer = self.buffer(buffer)?;
        let size = buffer.dtype.size();
        let end = offset.checked_mul(size).and_then(|start| start.checked_add(bytes));
        if bytes.is_multiple_of(size) && end.is_some_and(|end| end <= buffer.len * size) {
            return Ok((buffer.address + (offset * size) as u64, buffer.label.clone()));
        }
        let (label, len, dtype) = (&buffer.label, buffer.len, buffer.dtype);
        Err(self.op(label, format!("{bytes} bytes from element {offset} on are not part of {len} {dtype}")))
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<(u64, usize), BackendError> {
        let bytes = bytes.max(1).checked_next_multiple_of(GRANULE);
        let bytes = bytes.ok_or_else(|| self.other(format!("{what} is larger than any memory")))?;
        let address = self.machine.alloc(bytes).map_err(|failure| self.failed(what, failure))?;
        self.memory.in_use += bytes as u64;
        self.memory.peak = self.memory.peak.max(self.memory.in_use);
        Ok((address, bytes))
    }

    fn release_memory(&mut self, address: u64, bytes: usize) {
        self.machine.free(address);
        self.memory.in_use -= bytes as u64;
    }

    /// Scratch memory of at least this many bytes. Plans with less keep theirs.
    fn shared_scratch(&mut self, bytes: usize) -> Result<Arc<Scratch>, BackendError> {
        match &self.scratch {
            Some(scratch) if scratch.bytes >= bytes => Ok(scratch.clone()),
            _ => {
                let (address, bytes) = self.allocate(bytes, "scratch memory")?;
                self.memory.plans += bytes as u64;
                let made = Arc::new(Scratch { address, bytes });
                let before = self.scratch.replace(made.clone());
                self.forget_scratch(before);
                Ok(made)
            }
        }
    }

    /// Frees scratch memory that nothing else holds.
    fn forget_scratch(&mut self, scratch: Option<Arc<Scratch>>) {
        if let Some(Scratch { address, bytes }) = scratch.and_then(Arc::into_inner) {
            self.memory.plans -= bytes as u64;
            self.release_memory(address, bytes);
        }
    }

    /// The address of a buffer that must hold at least `bytes` of `dtype` from element `offset` on.
    fn sized(&self, id: BufferId, offset: usize, bytes: usize, dtype: DType, what: &str) -> Result<u64, BackendError> {
        let buffer = self.buffer(id)?;
        let has = buffer.len * buffer.dtype.size();
        let begin = offset.saturating_mul(dtype.size());
        if has >= begin.saturating_add(bytes) && buffer.dtype == dtype && begin.is_multiple_of(ALIGNMENT) {
            return Ok(buffer.address + begin as u64);
        }
        let of = buffer.dtype;
        let reason =
            format!("{what} needs {bytes} bytes of {dtype} from byte {begin} on, but its buffer has {has} of {of}");
        Err(self.op("prepare", reason))
    }

    /// The addresses of a plan's arena and external tensors, checked.
    fn bind(
        &self,
        plan: &Plan,
        arena: &[BufferId],
        externals: &[BufferId],
    ) -> Result<(Vec<u64>, Vec<u64>), BackendError> {
        if externals.len() != plan.externals.len() {
            let (got, wanted) = (externals.len(), plan.externals.len());
            return Err(self.other(format!("the plan has {wanted} external tensors, got {got} buffers")));
        }
        if arena.len() != plan.arena_buffers().len() {
            let (got, wanted) = (arena.len(), plan.arena_buffers().len());
            return Err(self.other(format!("the arena has {wanted} segments, got {got} buffers")));
        }
        let segments = arena.iter().zip(plan.arena_buffers());
        let segments = segments.map(|(&buffer, &bytes)| self.sized(buffer, 0, bytes, DType::F32, "the arena"));
        let tensors = externals.iter().zip(&plan.externals).map(|(&buffer, external)| {
            self.sized(buffer, external.offset, external.ty.bytes(), external.ty.dtype, &external.name)
        });
        Ok((segments.collect::<Result<_, _>>()?, tensors.collect::<Result<_, _>>()?))
    }

    /// The pieces of each call, with products prepared and kernels loaded.
    fn pieces(&mut self, plan: &Plan) -> Result<Vec<Pieces>, BackendError> {
        let mut all = Vec::new();
        let device = Device { tf32: plan.tf32, ..self.device };
        for call in &plan.calls {
            let (cache, machine) = (&mut self.cache, self.machine.as_mut());
            let mut failure = None;
            let mut serves = |form: &_| cache.serves(machine, form).map_err(|why| failure.insert(why).reason());
            match Pieces::of(call, &device, &mut serves) {
                Ok(pieces) => all.push(pieces),
                Err(reason) => {
                    return Err(match failure {
                        Some(failure) => self.failed(&name(call), failure),
                        None => self.op(&name(call), reason),
                    });
                }
            }
        }
        let loaded = self.cache.load(self.machine.as_mut(), &all);
        loaded.map_err(|failure| self.failed("preparing kernels", failure))?;
        Ok(all)
    }

    /// Records a plan, and says how it runs from now on.
    fn record(&mut self, plan: PlanId) -> Result<Run, BackendError> {
        self.alive("a run")?;
        let Some(prepared) = self.plans.get_mut(&plan.0) else { return Ok(Run::Steps) };
        let calls = &mut prepared.calls;
        let recorded = self.machine.record(&mut |machine| {
            calls.iter_mut().flat_map(|call| &mut call.steps).try_for_each(|step| step.run(machine))
        });
        match recorded {
            Ok(graph) => Ok(graph.map_or(Run::Steps, Run::Recorded)),
            Err(failure @ Failure::Lost(_)) => Err(self.failed("recording a plan", failure)),
            Err(failure) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let (device, reason) = (&self.info.id, failure.reason());
                    eprintln!("warning: {device}: plans run launch by launch, since they cannot be recorded: {reason}");
                }
                Ok(Run::Steps)
            }
        }
    }

    /// Runs all steps of a plan; calls `between` after those of each call.
    fn run_calls(
        &mut self,
        plan: PlanId,
        mut between: impl FnMut(&mut dyn Machine) -> Result<(), Failure>,
    ) -> Result<(), BackendError> {
        self.alive("a run")?;
        let machine = self.machine.as_mut();
        let Some(prepared) = self.plans.get_mut(&plan.0) else {
            return Err(self.other(format!("there is no plan {}", plan.0)));
        };
        for call in &mut prepared.calls {
            let ran = call.steps.iter_mut().try_for_each(|step| step.run(machine)).and_then(|()| between(machine));
            if let Err(failure) = ran {
                let name = call.name.clone();
                return Err(self.failed(&name, failure));
            }
        }
        Ok(())
    }
}

fn name(call: &Call) -> String {
    format!("{} ({})", call.op.name(), call.label)
}

/// CUDA reports some errors late, and those of a recorded plan without saying which of its calls has failed.
const ONE_BY_ONE: &str = "with SPARTA_CUDA_GRAPHS=0 and CUDA_LAUNCH_BLOCKING=1, this message names the op";

/// The error for a failure of `what`.
fn named(device: &str, what: &str, failure: Failure) -> BackendError {
    let (device, what) = (device.to_owned(), what.to_owned());
    match failure {
        Failure::OutOfMemory { bytes } => BackendError::OutOfMemory { device, what, bytes },
        Failure::Lost(reason) => {
            BackendError::DeviceLost { device, during: what, reason: format!("{reason}; {ONE_BY_ONE}") }
        }
        Failure::Other(reason) => BackendError::Op { device, op: what, reason },
    }
}

impl Backend for CudaBackend {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError> {
        self.alive(label)?;
        let bytes = len.checked_mul(dtype.size());
        let too_many = || self.other(format!("{label}: {len} elements exceed the address space"));
        let (address, bytes) = self.allocate(bytes.ok_or_else(too_many)?, label)?;
        let id = self.new_id();
        self.buffers.insert(id, Buffer { address, bytes, dtype, len, label: label.into() });
        Ok(BufferId(id))
    }

    fn free(&mut self, buffer: BufferId) {
        if let Some(Buffer { address, bytes, .. }) = self.buffers.remove(&buffer.0) {
            self.release_memory(address, bytes);
        }
    }

    fn memory_use(&self) -> Option<MemoryUse> {
        Some(self.memory)
    }

    fn supports(&self, plan: &Plan) -> Result<(), BackendError> {
        sparta_kernels::check(plan, self.device.bounds).map_err(|reason| self.other(reason))
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        let (to, label) = self.range(buffer, offset, data.len())?;
        self.alive(&label)?;
        // SAFETY: the range is part of the buffer.
        unsafe { self.machine.write(to, data) }.map_err(|failure| self.failed(&label, failure))
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError> {
        let (from, label) = self.range(buffer, offset, out.len())?;
        self.alive(&label)?;
        // SAFETY: the range is part of the buffer.
        unsafe { self.machine.read(from, out) }.map_err(|failure| self.failed(&label, failure))
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError> {
        self.alive("preparing a plan")?;
        let (arena, externals) = self.bind(plan, arena, externals)?;
        let pieces = self.pieces(plan)?;
        let scratch = self.shared_scratch(pieces.iter().map(|pieces| pieces.scratch).max().unwrap_or(0))?;
        let addresses = Addresses { plan, arena, externals, scratch: scratch.address, unused: self.unused };
        let mut calls = Vec::new();
        for (call, pieces) in plan.calls.iter().zip(&pieces) {
            let steps = pieces.pieces.iter().map(|piece| Step::new(piece, &addresses, &self.cache));
            let steps = steps.collect::<Result<_, _>>().map_err(|reason| self.op(&name(call), reason))?;
            calls.push(PreparedCall { name: name(call), steps });
        }
        let id = self.new_id();
        self.plans.insert(id, Prepared { calls, scratch, run: Run::First });
        Ok(PlanId(id))
    }

    fn run(&mut self, plan: PlanId) -> Result<(), BackendError> {
        let run = match self.plans.get(&plan.0).map_or(Run::Steps, |prepared| prepared.run) {
            Run::Second => self.record(plan)?,
            run => run,
        };
        match run {
            Run::Recorded(graph) => {
                self.alive("a run")?;
                self.machine.replay(graph).map_err(|failure| self.failed("a run", failure))?;
            }
            Run::First | Run::Second | Run::Steps => self.run_calls(plan, |_| Ok(()))?,
        }
        if let Some(prepared) = self.plans.get_mut(&plan.0) {
            let steps: usize = prepared.calls.iter().map(|call| call.steps.len()).sum();
            prepared.run = match run {
                Run::First if steps < RECORDED => Run::Steps,
                Run::First => Run::Second,
                run => run,
            };
        }
        Ok(())
    }

    fn request(&mut self, buffer: BufferId, offset: usize, bytes: usize) -> Result<ReadId, BackendError> {
        let (from, label) = self.range(buffer, offset, bytes)?;
        self.alive(&label)?;
        // SAFETY: the range is part of the buffer.
        let reading = unsafe { self.machine.start_read(from, bytes) };
        let reading = reading.map_err(|failure| self.failed(&label, failure))?;
        let id = self.new_id();
        self.reads.insert(id, (reading, bytes));
        Ok(ReadId::Pending(id))
    }

    fn fetch(&mut self, read: ReadId, out: &mut [u8]) -> Result<(), BackendError> {
        let reading = match read {
            ReadId::Pending(id) => self.reads.remove(&id),
            ReadId::Ready(_) => None,
        };
        let (reading, bytes) = reading.ok_or_else(|| self.other("the read was not requested from this device"))?;
        let mut all = vec![0; bytes];
        let read = self.machine.finish_read(reading, &mut all);
        read.map_err(|failure| self.failed("a requested read", failure))?;
        sparta_graph::copy_ready(&all, out).map_err(|reason| self.other(reason))
    }

    fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>, BackendError> {
        self.alive("a run")?;
        self.machine.mark().map_err(|failure| self.failed("a run", failure))?;
        let ran = self.run_calls(plan, |machine| machine.mark());
        let times = self.machine.times().map_err(|failure| self.failed("a run", failure));
        ran.and(times)
    }

    fn release(&mut self, plan: PlanId) {
        if let Some(prepared) = self.plans.remove(&plan.0) {
            if let Run::Recorded(graph) = prepared.run {
                self.machine.forget(graph);
            }
            self.forget_scratch(Some(prepared.scratch));
        }
    }
}
