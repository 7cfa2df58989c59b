use crate::bind::{self, Kernel};
use crate::device;
use crate::memory::{Buffer, Memory, Need, Scratch};
use crate::real::Real;
use half::{bf16, f16};
use sparta_graph::{Backend, BackendError, BufferId, DType, DeviceInfo, MemoryUse, Plan, PlanId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The id of the device: what `--device` accepts.
pub const DEVICE: &str = "cpu";

/// Runs plans on the CPU, with f32 tensors held as `T`.
///
/// Results do not depend on the number of threads. Memory that a plan is bound to lives until the plan is released,
/// even if its buffer is freed earlier.
pub struct CpuBackend<T: Real> {
    pool: rayon::ThreadPool,
    info: DeviceInfo,
    buffers: HashMap<u64, Arc<Buffer>>,
    plans: HashMap<u64, Prepared>,
    /// Shared by all plans, as only one runs at a time.
    scratch: Scratch,
    /// The most bytes that were in use.
    peak: u64,
    next: u64,
    number: std::marker::PhantomData<T>,
}

struct Prepared {
    steps: Vec<Step>,
    /// Kept alive: the kernels point to them.
    buffers: Vec<Arc<Buffer>>,
}

struct Step {
    name: String,
    kernel: Kernel,
}

fn other(reason: impl Into<String>) -> BackendError {
    BackendError::Other { device: DEVICE.into(), reason: reason.into() }
}

fn out_of_memory(what: impl Into<String>, bytes: usize) -> BackendError {
    BackendError::OutOfMemory { device: DEVICE.into(), what: what.into(), bytes: bytes as u64 }
}

fn op_error(op: &str, reason: String) -> BackendError {
    BackendError::Op { device: DEVICE.into(), op: op.into(), reason }
}

impl<T: Real> CpuBackend<T> {
    /// `threads`: by default those of `RAYON_NUM_THREADS`, or as many as the process may use.
    ///
    /// Errors: the system refuses to start the threads.
    pub fn new(threads: Option<usize>) -> Result<Self, BackendError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .map_err(|e| other(format!("cannot start the worker threads: {e}")))?;
        let threads = pool.current_num_threads();
        let scratch = Scratch::new(Need::default(), threads).ok_or_else(|| out_of_memory("scratch memory", 0))?;
        Ok(CpuBackend {
            pool,
            info: device::info(threads, size_of::<T>() == size_of::<f32>()),
            scratch,
            buffers: HashMap::new(),
            plans: HashMap::new(),
            peak: 0,
            next: 1,
            number: std::marker::PhantomData,
        })
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn buffer(&self, id: BufferId) -> Result<&Arc<Buffer>, BackendError> {
        self.buffers.get(&id.0).ok_or_else(|| other(format!("there is no buffer {}", id.0)))
    }

    /// Bytes of all buffers, including those that only plans still hold, and of scratch memory.
    fn in_use(&self) -> u64 {
        let bound = self.plans.values().flat_map(|plan| &plan.buffers);
        let buffers: HashMap<*const Buffer, usize> =
            self.buffers.values().chain(bound).map(|buffer| (Arc::as_ptr(buffer), buffer.memory.bytes())).collect();
        buffers.into_values().chain([self.scratch.bytes()]).map(|bytes| bytes as u64).sum()
    }

    /// The address of `count` elements from `offset` on.
    fn elements(&self, id: BufferId, offset: usize, count: usize) -> Result<(DType, *mut u8), BackendError> {
        let buffer = self.buffer(id)?;
        if offset.checked_add(count).is_none_or(|end| end > buffer.len) {
            return Err(other(format!(
                "`{}` holds {} elements; {count} from element {offset} on are out of range",
                buffer.label, buffer.len
            )));
        }
        Ok((buffer.dtype, buffer.memory.ptr().wrapping_add(offset * bind::element::<T>(buffer.dtype))))
    }

    /// Elements of the buffer's type in `bytes` bytes of a message.
    fn count(&self, id: BufferId, bytes: usize) -> Result<usize, BackendError> {
        let buffer = self.buffer(id)?;
        let size = buffer.dtype.size();
        if !bytes.is_multiple_of(size) {
            return Err(other(format!(
                "`{}` holds {}: {bytes} bytes are not a whole number of elements",
                buffer.label, buffer.dtype
            )));
        }
        Ok(bytes / size)
    }
}

impl CpuBackend<f64> {
    /// Overwrites elements of an f32 tensor from element `offset` on, unrounded.
    pub fn write_f64(&mut self, buffer: BufferId, offset: usize, data: &[f64]) -> Result<(), BackendError> {
        let at = self.doubles(buffer, offset, data.len())?;
        // SAFETY: the range was checked, the memory is aligned, and nothing runs concurrently.
        unsafe { at.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    /// Reads elements of an f32 tensor from element `offset` on, unrounded.
    pub fn read_f64(&self, buffer: BufferId, offset: usize, out: &mut [f64]) -> Result<(), BackendError> {
        let at = self.doubles(buffer, offset, out.len())?;
        // SAFETY: as in `write_f64`.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(at, out.len()) };
        Ok(())
    }

    fn doubles(&self, buffer: BufferId, offset: usize, count: usize) -> Result<*mut f64, BackendError> {
        match self.elements(buffer, offset, count)? {
            (DType::F32, at) => Ok(at.cast()),
            (dtype, _) => Err(other(format!("`{}` holds {dtype}, not f32", self.buffer(buffer)?.label))),
        }
    }
}

/// # Safety
/// `at` has room for the elements in `data`.
unsafe fn store<E, const N: usize>(at: *mut u8, data: &[u8], from: impl Fn([u8; N]) -> E) {
    let at: *mut E = at.cast();
    for (i, bytes) in data.as_chunks::<N>().0.iter().enumerate() {
        // SAFETY: the caller vouches for the length.
        unsafe { at.add(i).write(from(*bytes)) };
    }
}

/// # Safety
/// `at` has the elements that fill `out`.
unsafe fn fetch<E: Copy, const N: usize>(at: *const u8, out: &mut [u8], to: impl Fn(E) -> [u8; N]) {
    let at: *const E = at.cast();
    for (i, bytes) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the length.
        *bytes = to(unsafe { at.add(i).read() });
    }
}

impl<T: Real> Backend for CpuBackend<T> {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError> {
        let bytes = len.saturating_mul(bind::element::<T>(dtype));
        if bytes as u64 > self.info.max_buffer {
            return Err(out_of_memory(label, bytes));
        }
        // Whole words, as on other devices.
        let memory = bytes.checked_next_multiple_of(4).and_then(Memory::zeroed);
        let memory = memory.ok_or_else(|| out_of_memory(label, bytes))?;
        let id = self.id();
        self.buffers.insert(id, Arc::new(Buffer { memory, dtype, len, label: label.into() }));
        self.peak = self.peak.max(self.in_use());
        Ok(BufferId(id))
    }

    fn free(&mut self, buffer: BufferId) {
        self.buffers.remove(&buffer.0);
    }

    fn memory_use(&self) -> Option<MemoryUse> {
        Some(MemoryUse { in_use: self.in_use(), peak: self.peak, plans: self.scratch.bytes() as u64 })
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        let (dtype, at) = self.elements(buffer, offset, self.count(buffer, data.len())?)?;
        // SAFETY: the range was checked, and nothing runs concurrently.
        unsafe {
            match dtype {
                DType::F32 => store(at, data, |b| T::from_f32(f32::from_le_bytes(b))),
                DType::U32 => store(at, data, u32::from_le_bytes),
                DType::BF16 => store(at, data, bf16::from_le_bytes),
                DType::F16 => store(at, data, f16::from_le_bytes),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError> {
        let (dtype, at) = self.elements(buffer, offset, self.count(buffer, out.len())?)?;
        // SAFETY: as in `write`.
        unsafe {
            match dtype {
                DType::F32 => fetch(at, out, |x: T| (x.to_f64() as f32).to_le_bytes()),
                DType::U32 => fetch(at, out, u32::to_le_bytes),
                DType::BF16 => fetch(at, out, bf16::to_le_bytes),
                DType::F16 => fetch(at, out, f16::to_le_bytes),
            }
        }
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError> {
        let arena = arena.iter().map(|&id| self.buffer(id).cloned()).collect::<Result<Vec<_>, _>>()?;
        if arena.len() != plan.arena_buffers().len() {
            let (expected, got) = (plan.arena_buffers().len(), arena.len());
            return Err(other(format!("the arena has {expected} segments, got {got} buffers")));
        }
        for (buffer, bytes) in arena.iter().zip(plan.arena_buffers()) {
            if buffer.dtype != DType::F32 || buffer.len < bytes.div_ceil(4) {
                let (dtype, len) = (buffer.dtype, buffer.len);
                return Err(other(format!("the arena must hold {bytes} bytes of f32, got {len} elements of {dtype}")));
            }
        }
        if externals.len() != plan.externals.len() {
            let (expected, got) = (plan.externals.len(), externals.len());
            return Err(other(format!("the plan has {expected} external tensors, got {got} buffers")));
        }
        let externals = externals.iter().map(|&id| self.buffer(id).cloned()).collect::<Result<Vec<_>, _>>()?;
        for (external, buffer) in plan.externals.iter().zip(&externals) {
            let fits = bind::begin::<T>(external, buffer).is_some();
            if external.ty.dtype != buffer.dtype || !fits {
                let (ty, at, len) = (&external.ty, external.offset, buffer.len);
                return Err(other(format!(
                    "`{}` is {} {:?} at element {at}, but its buffer `{}` holds {len} elements of {}",
                    external.name, ty.dtype, ty.shape, buffer.label, buffer.dtype
                )));
            }
        }
        let mut need = self.scratch.need();
        let mut steps = Vec::with_capacity(plan.calls.len());
        for call in &plan.calls {
            let name = if call.label.is_empty() {
                call.op.name().into()
            } else {
                format!("{} in {}", call.op.name(), call.label)
            };
            // In the pool, so that a kernel can divide its work by the number of threads.
            let kernel = self.pool.install(|| bind::bind::<T>(plan, call, &arena, &externals));
            let kernel = kernel.map_err(|reason| op_error(&name, reason))?;
            need = need.max(kernel.need);
            steps.push(Step { name, kernel });
        }
        if need != self.scratch.need() {
            let threads = self.pool.current_num_threads();
            let bytes = need.per_thread.saturating_mul(threads).saturating_add(need.shared);
            self.scratch =
                Scratch::new(need, threads).ok_or_else(|| out_of_memory("scratch memory of a plan", bytes))?;
        }
        let id = self.id();
        let buffers = externals.into_iter().chain(arena).collect();
        self.plans.insert(id, Prepared { steps, buffers });
        self.peak = self.peak.max(self.in_use());
        Ok(PlanId(id))
    }

    fn run(&mut self, plan: PlanId) -> Result<(), BackendError> {
        let plan = self.plans.get(&plan.0).ok_or_else(|| other(format!("there is no plan {}", plan.0)))?;
        self.pool.install(|| {
            let mut steps = plan.steps.iter();
            steps.try_for_each(|step| (step.kernel.run)(&self.scratch).map_err(|reason| op_error(&step.name, reason)))
        })
    }

    fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>, BackendError> {
        let plan = self.plans.get(&plan.0).ok_or_else(|| other(format!("there is no plan {}", plan.0)))?;
        let timed = |step: &Step| {
            let start = Instant::now();
            (step.kernel.run)(&self.scratch).map_err(|reason| op_error(&step.name, reason))?;
            Ok(start.elapsed())
        };
        self.pool.install(|| plan.steps.iter().map(timed).collect())
    }

    fn release(&mut self, plan: PlanId) {
        self.plans.remove(&plan.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Reference};
    use sparta_graph::graph::TensorType;
    use sparta_graph::ops::{Add, Embed, Gather};
    use sparta_graph::plan::External;
    use sparta_graph::{Call, Op, Operand, Place};

    #[test]
    fn f32_passes_through_both_number_types_and_f64_only_through_the_reference() {
        let data: Vec<u8> = [1.5f32, -2.0, 3.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut reference = Reference::new(Some(1)).unwrap();
        let mut cpu = Cpu::new(Some(1)).unwrap();
        let backends: [&mut dyn Backend; 2] = [&mut reference, &mut cpu];
        for backend in backends {
            let buffer = backend.alloc(DType::F32, 5, "x").unwrap();
            backend.write(buffer, 1, &data).unwrap();
            let mut out = [0; 20];
            backend.read(buffer, 0, &mut out).unwrap();
            assert_eq!((&out[..4], &out[4..16], &out[16..]), (&[0; 4][..], &data[..], &[0; 4][..]));
            assert!(backend.write(buffer, 3, &data).unwrap_err().to_string().contains("`x` holds 5 elements"));
            assert!(backend.read(buffer, 0, &mut [0; 3]).is_err());
            backend.free(buffer);
            assert!(backend.read(buffer, 0, &mut out).is_err());
        }
        let buffer = reference.alloc(DType::F32, 2, "x").unwrap();
        reference.write_f64(buffer, 1, &[0.1]).unwrap();
        let mut out = [1.0; 2];
        reference.read_f64(buffer, 0, &mut out).unwrap();
        assert_eq!(out, [0.0, 0.1]);
        assert!(reference.write_f64(buffer, 2, &[0.1]).is_err());
    }

    #[test]
    fn more_memory_than_the_machine_has_is_refused() {
        let mut backend = Cpu::new(Some(1)).unwrap();
        let error = backend.alloc(DType::F32, usize::MAX / 8, "embedding").unwrap_err();
        assert!(matches!(&error, BackendError::OutOfMemory { what, .. } if what == "embedding"), "{error}");
    }

    fn operand(place: Place, shape: &[usize]) -> Operand {
        Operand { place, ty: TensorType::f32(shape) }
    }

    /// The error of preparing an op with one external tensor `x` of 64 elements and an arena of 512 bytes.
    fn refused(op: Op, inputs: Vec<Operand>, output: Operand) -> String {
        let mut backend = Reference::new(Some(1)).unwrap();
        let arena = backend.alloc(DType::F32, 128, "arena").unwrap();
        let x = backend.alloc(DType::F32, 64, "x").unwrap();
        let externals = vec![External { name: "x".into(), offset: 0, ty: TensorType::f32([64]) }];
        let call = Call { op, inputs, outputs: vec![output], label: "layers.1".into() };
        let plan = Plan { arena: 512, segments: vec![], externals, calls: vec![call], tf32: false };
        backend.prepare(&plan, &[arena], &[x]).expect_err("a bad plan was accepted").to_string()
    }

    #[test]
    fn bad_plans_are_refused() {
        let add = |a, b, c| refused(Add {}.into(), vec![a, b], c);
        let at = |offset| operand(Place::Arena(offset), &[64]);
        let x = || operand(Place::External(0), &[64]);
        let error = add(x(), x(), at(512));
        assert!(error.contains("add in layers.1") && error.contains("offset 512"), "{error}");
        assert!(add(x(), x(), at(4)).contains("offset 4"));
        assert!(add(x(), x(), at(usize::MAX - 255)).contains("arena of 512"));
        assert!(add(x(), operand(Place::External(1), &[64]), at(0)).contains("external tensor 1"));
        let wide = operand(Place::External(0), &[65]);
        assert!(add(wide.clone(), wide.clone(), operand(Place::Arena(0), &[65])).contains("`x`"));
        assert!(add(x(), x(), operand(Place::Arena(0), &[32])).contains("the outputs must be"));
        let huge = operand(Place::External(0), &[usize::MAX, 2]);
        assert!(add(huge.clone(), huge.clone(), huge).contains("too large"));
        // `x` does not hold u32.
        let tokens = Operand { place: Place::External(0), ty: TensorType::new(DType::U32, [64]) };
        assert!(refused(Gather {}.into(), vec![at(0), tokens.clone()], at(256)).contains("`x`"));
        let embed = Embed { scale: 1.0, padding: None };
        assert!(refused(embed.into(), vec![x(), tokens], at(0)).contains("must be a matrix"));
    }

    #[test]
    fn operands_that_overlap_in_part_are_refused() {
        let wide = |offset| operand(Place::Arena(offset), &[96]);
        let mut backend = Cpu::new(Some(1)).unwrap();
        let arena = backend.alloc(DType::F32, 256, "arena").unwrap();
        let mut prepare = |a, b, c| {
            let call =
                Call { op: Add {}.into(), inputs: vec![wide(a), wide(b)], outputs: vec![wide(c)], label: "".into() };
            let plan = Plan { arena: 1024, segments: vec![], externals: vec![], calls: vec![call], tf32: false };
            backend.prepare(&plan, &[arena], &[])
        };
        assert!(prepare(0, 512, 0).is_ok());
        assert!(prepare(0, 512, 512).is_ok());
        assert!(prepare(0, 512, 256).unwrap_err().to_string().contains("output 0 overlaps input 0"));
    }
}
