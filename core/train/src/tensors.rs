//! Named tensors on one device, which plans bind by name.

use crate::{Error, Result};
use sparta_graph::{Backend, BufferId, DType, DeviceInfo, MemoryUse, Plan, PlanId, ReadId, Tuned, Work};
use sparta_model::to_f32;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// What a tensor's memory is for; memory plans list bytes by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    Weights,
    /// Index sets of sparse training: positions and row pointers.
    Indices,
    /// The values that sparse training started from.
    BaseValues,
    /// Deltas of sparse training and extra tensors of reparametrizations.
    Adapter,
    Optimizer,
    /// Gradient sums over micro-batches, and gradients that a method reads.
    Gradients,
    /// The arena: activations, gradients of one micro-batch, scratch.
    Activations,
    /// The cache of keys and values, if text is generated.
    Cache,
    /// Batches, results and tables.
    Buffers,
}

impl MemoryKind {
    pub const ALL: [MemoryKind; 9] = [
        MemoryKind::Weights,
        MemoryKind::Indices,
        MemoryKind::BaseValues,
        MemoryKind::Adapter,
        MemoryKind::Optimizer,
        MemoryKind::Gradients,
        MemoryKind::Activations,
        MemoryKind::Cache,
        MemoryKind::Buffers,
    ];

    pub fn title(self) -> &'static str {
        match self {
            MemoryKind::Weights => "weights",
            MemoryKind::Indices => "indices",
            MemoryKind::BaseValues => "base values",
            MemoryKind::Adapter => "deltas and adapters",
            MemoryKind::Optimizer => "optimizer state",
            MemoryKind::Gradients => "gradients",
            MemoryKind::Activations => "activations and scratch",
            MemoryKind::Cache => "keys and values",
            MemoryKind::Buffers => "buffers",
        }
    }
}

struct Tensor {
    buffer: BufferId,
    /// The element of the buffer at which it begins.
    begin: usize,
    dtype: DType,
    len: usize,
    kind: MemoryKind,
    /// Whether the buffer belongs to another tensor.
    part: bool,
}

/// Work waiting for [`DeviceTensors::submit`].
enum Queued {
    Write { buffer: BufferId, offset: usize, data: Vec<u8> },
    Run(PlanId),
}

/// A read that was requested from the device.
pub struct Requested {
    read: ReadId,
    len: usize,
}

/// A device and the tensors on it.
///
/// Work can be queued and submitted together; direct reads, writes and runs come after everything queued.
pub struct DeviceTensors {
    device: Box<dyn Backend>,
    by_name: HashMap<String, Tensor>,
    arena: Vec<Segment>,
    queue: Vec<Queued>,
}

/// A buffer of the arena.
struct Segment {
    buffer: BufferId,
    bytes: usize,
}

/// Bytes of a buffer for this many elements, rounded up to whole words.
pub fn buffer_bytes(dtype: DType, len: usize) -> u64 {
    (len * dtype.size()).next_multiple_of(4) as u64
}

/// Enlarges the segments of an arena, in bytes, so that a plan fits.
pub fn make_room(segments: &mut Vec<usize>, plan: &Plan) {
    let needed = plan.arena_buffers();
    segments.resize(segments.len().max(needed.len()), 0);
    segments.iter_mut().zip(needed).for_each(|(segment, &bytes)| *segment = bytes.max(*segment));
}

impl DeviceTensors {
    pub fn new(device: Box<dyn Backend>) -> Self {
        DeviceTensors { device, by_name: HashMap::new(), arena: Vec::new(), queue: Vec::new() }
    }

    pub fn device(&self) -> DeviceInfo {
        self.device.info()
    }

    /// The measured choices of kernels on which the plans so far depend, if the device measures.
    pub fn tuned(&self) -> Option<Tuned> {
        self.device.tuned()
    }

    /// What the backend has allocated on the device, if it counts.
    pub fn memory_use(&self) -> Option<MemoryUse> {
        self.device.memory_use()
    }

    /// Allocates a zero-filled tensor. Errors: out of memory; a name that is already taken.
    pub fn alloc(&mut self, name: &str, dtype: DType, len: usize, kind: MemoryKind) -> Result<()> {
        if self.by_name.contains_key(name) {
            return Err(Error::Training(format!("there are two tensors named `{name}`")));
        }
        let buffer = self.device.alloc(dtype, len, name)?;
        self.by_name.insert(name.to_owned(), Tensor { buffer, begin: 0, dtype, len, kind, part: false });
        Ok(())
    }

    /// Names elements `begin .. begin + len` of a tensor, which plans can then bind like a tensor.
    ///
    /// Errors: elements out of range; a name that is already taken.
    pub fn name_part(&mut self, name: &str, of: &str, begin: usize, len: usize) -> Result<()> {
        let whole = self.get(of)?;
        if self.by_name.contains_key(name) || begin + len > whole.len {
            return Err(Error::Training(format!(
                "`{name}` cannot be elements {begin} to {} of `{of}`, which has {}",
                begin + len,
                whole.len
            )));
        }
        let Tensor { buffer, dtype, kind, .. } = *whole;
        self.by_name.insert(name.to_owned(), Tensor { buffer, begin, dtype, len, kind, part: true });
        Ok(())
    }

    /// Replaces the memory in which plans keep their intermediate tensors by segments of these sizes in bytes;
    /// plans bound to the old memory must have been released.
    pub fn alloc_arena(&mut self, segments: &[usize]) -> Result<()> {
        self.arena.drain(..).for_each(|old| self.device.free(old.buffer));
        for &bytes in segments {
            let buffer = self.device.alloc(DType::F32, bytes.div_ceil(4), "arena")?;
            self.arena.push(Segment { buffer, bytes: bytes.next_multiple_of(4) });
        }
        Ok(())
    }

    /// Bytes of each segment of the arena.
    pub fn arena(&self) -> Vec<usize> {
        self.arena.iter().map(|segment| segment.bytes).collect()
    }

    /// Whether the arena is large enough for a plan.
    pub fn has_room(&self, plan: &Plan) -> bool {
        let needed = plan.arena_buffers();
        needed.len() <= self.arena.len() && needed.iter().zip(&self.arena).all(|(&bytes, has)| bytes <= has.bytes)
    }

    /// Frees a tensor; the plans bound to it must have been released. A part only loses its name.
    pub fn free(&mut self, name: &str) {
        if let Some(tensor) = self.by_name.remove(name)
            && !tensor.part
        {
            self.device.free(tensor.buffer);
        }
    }

    /// Overwrites the first elements with little-endian values of the tensor's type.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<()> {
        self.submit()?;
        let (buffer, offset) = self.place(name, data.len())?;
        Ok(self.device.write(buffer, offset, data)?)
    }

    pub fn write_f32(&mut self, name: &str, data: &[f32]) -> Result<()> {
        self.write(name, bytemuck::cast_slice(data))
    }

    pub fn write_u32(&mut self, name: &str, data: &[u32]) -> Result<()> {
        self.write(name, bytemuck::cast_slice(data))
    }

    /// Like [`DeviceTensors::write`], at the next [`DeviceTensors::submit`].
    pub fn queue_write<E: bytemuck::NoUninit>(&mut self, name: &str, data: &[E]) -> Result<()> {
        let data: &[u8] = bytemuck::cast_slice(data);
        let (buffer, offset) = self.place(name, data.len())?;
        self.queue.push(Queued::Write { buffer, offset, data: data.to_vec() });
        Ok(())
    }

    /// Like [`DeviceTensors::run`], at the next [`DeviceTensors::submit`].
    pub fn queue_run(&mut self, plan: PlanId) {
        self.queue.push(Queued::Run(plan));
    }

    /// Submits everything queued to the device, as one submission if possible.
    pub fn submit(&mut self) -> Result<()> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let queue = std::mem::take(&mut self.queue);
        let work = queue.iter().map(|queued| match queued {
            Queued::Write { buffer, offset, data } => Work::Write { buffer: *buffer, offset: *offset, data },
            Queued::Run(plan) => Work::Run(*plan),
        });
        Ok(self.device.submit(&work.collect::<Vec<_>>())?)
    }

    /// Requests the first `len` elements of an f32 tensor as they are after all work so far, without waiting.
    pub fn request_f32(&mut self, name: &str, len: usize) -> Result<Requested> {
        self.submit()?;
        let (buffer, offset) = self.place(name, 4 * len)?;
        Ok(Requested { read: self.device.request(buffer, offset, 4 * len)?, len })
    }

    /// Waits for a requested read.
    pub fn fetch_f32(&mut self, requested: Requested) -> Result<Vec<f32>> {
        let mut out = vec![0f32; requested.len];
        self.device.fetch(requested.read, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// The first `len` elements of an f32 tensor.
    pub fn read_f32(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let requested = self.request_f32(name, len)?;
        self.fetch_f32(requested)
    }

    /// All elements of a float tensor as f32.
    pub fn read_floats(&mut self, name: &str) -> Result<Vec<f32>> {
        let Tensor { dtype, len, .. } = *self.get(name)?;
        if dtype == DType::F32 {
            return self.read_f32(name, len);
        }
        let bytes = self.read_bytes(name)?;
        to_f32(dtype, &bytes).ok_or_else(|| Error::Training(format!("`{name}` is {dtype}, not a float tensor")))
    }

    /// Overwrites a float tensor with these values, rounded to its type.
    pub fn write_floats(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let dtype = self.dtype(name)?;
        let half = |encode: fn(f32) -> [u8; 2]| values.iter().flat_map(|&x| encode(x)).collect::<Vec<u8>>();
        match dtype {
            DType::F32 => self.write_f32(name, values),
            DType::BF16 => self.write(name, &half(|x| half::bf16::from_f32(x).to_le_bytes())),
            DType::F16 => self.write(name, &half(|x| half::f16::from_f32(x).to_le_bytes())),
            DType::U32 => Err(Error::Training(format!("`{name}` is {dtype}, not a float tensor"))),
        }
    }

    /// All bytes of a tensor, in its type.
    pub fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        self.submit()?;
        let tensor = self.get(name)?;
        let mut out = vec![0; tensor.len * tensor.dtype.size()];
        let (buffer, offset) = (tensor.buffer, tensor.begin);
        self.device.read(buffer, offset, &mut out)?;
        Ok(out)
    }

    /// The buffer of a tensor and the element at which the tensor begins there, checked to have `bytes` bytes.
    fn place(&self, name: &str, bytes: usize) -> Result<(BufferId, usize)> {
        let tensor = self.get(name)?;
        let has = tensor.len * tensor.dtype.size();
        if bytes > has {
            return Err(Error::Training(format!("{bytes} bytes are more than the {has} of `{name}`")));
        }
        Ok((tensor.buffer, tensor.begin))
    }

    pub fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.get(name)?.dtype)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Binds a plan to the tensors with the names of its externals.
    pub fn prepare(&mut self, plan: &Plan) -> Result<PlanId> {
        let mut plan = plan.clone();
        let mut externals = Vec::with_capacity(plan.externals.len());
        for external in &mut plan.externals {
            let tensor = self.get(&external.name)?;
            external.offset = tensor.begin;
            externals.push(tensor.buffer);
        }
        if !self.has_room(&plan) {
            let (needed, has) = (plan.arena_buffers(), self.arena());
            return Err(Error::Training(format!("a plan needs an arena of {needed:?} bytes, {has:?} were reserved")));
        }
        let segments = plan.arena_buffers().len();
        let arena: Vec<BufferId> = self.arena[..segments].iter().map(|segment| segment.buffer).collect();
        Ok(self.device.prepare(&plan, &arena, &externals)?)
    }

    pub fn run(&mut self, plan: PlanId) -> Result<()> {
        self.submit()?;
        Ok(self.device.run(plan)?)
    }

    /// Like [`DeviceTensors::run`], with the time of each call.
    pub fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>> {
        self.submit()?;
        Ok(self.device.run_profiled(plan)?)
    }

    pub fn release(&mut self, plan: PlanId) {
        self.device.release(plan);
    }

    /// Bytes allocated, by kind.
    pub fn memory(&self) -> BTreeMap<MemoryKind, u64> {
        let mut memory = BTreeMap::new();
        if !self.arena.is_empty() {
            memory.insert(MemoryKind::Activations, self.arena.iter().map(|segment| segment.bytes as u64).sum());
        }
        for tensor in self.by_name.values().filter(|tensor| !tensor.part) {
            *memory.entry(tensor.kind).or_default() += buffer_bytes(tensor.dtype, tensor.len);
        }
        memory
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.by_name.get(name).ok_or_else(|| Error::Training(format!("no tensor `{name}` is on the device")))
    }
}
