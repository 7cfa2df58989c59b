//! Named tensors on one device: what plans bind by name.

use crate::profile::Ceiling;
use crate::{Error, Result};
use sparta_graph::{Backend, BufferId, DType, DeviceInfo, MemoryUse, Plan, PlanId};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// What a tensor's memory is for; the memory plan adds up by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    Weights,
    /// Index sets of sparse training: positions and row pointers.
    Indices,
    /// The values from which sparse training started.
    BaseValues,
    /// Deltas of sparse training; extra tensors of a reparametrisation.
    Adapter,
    Optimizer,
    /// Gradient sums over micro-batches.
    Gradients,
    /// The arena: activations, gradients of one micro-batch, scratch.
    Activations,
    /// Batches, results and tables.
    Buffers,
}

impl MemoryKind {
    pub const ALL: [MemoryKind; 8] = [
        MemoryKind::Weights,
        MemoryKind::Indices,
        MemoryKind::BaseValues,
        MemoryKind::Adapter,
        MemoryKind::Optimizer,
        MemoryKind::Gradients,
        MemoryKind::Activations,
        MemoryKind::Buffers,
    ];

    pub fn title(self) -> &'static str {
        match self {
            MemoryKind::Weights => "weights",
            MemoryKind::Indices => "indices",
            MemoryKind::BaseValues => "base values",
            MemoryKind::Adapter => "deltas and adapters",
            MemoryKind::Optimizer => "moments",
            MemoryKind::Gradients => "gradient sums",
            MemoryKind::Activations => "activations and scratch",
            MemoryKind::Buffers => "buffers",
        }
    }
}

struct Tensor {
    buffer: BufferId,
    dtype: DType,
    len: usize,
    kind: MemoryKind,
}

/// A device and the tensors that live on it.
pub struct Tensors {
    device: Box<dyn Backend>,
    by_name: HashMap<String, Tensor>,
}

/// The name of the arena among the tensors.
const ARENA: &str = "arena";

impl Tensors {
    pub fn new(device: Box<dyn Backend>) -> Self {
        Tensors { device, by_name: HashMap::new() }
    }

    pub fn device(&self) -> DeviceInfo {
        self.device.info()
    }

    /// What the backend has allocated on the device, where it counts.
    pub fn memory_use(&self) -> Option<MemoryUse> {
        self.device.memory_use()
    }

    /// Allocates a zero-filled tensor. Errors: out of memory; a name that is already taken.
    pub fn alloc(&mut self, name: &str, dtype: DType, len: usize, kind: MemoryKind) -> Result<()> {
        if self.by_name.contains_key(name) {
            return Err(Error::Training(format!("two tensors are called `{name}`")));
        }
        let buffer = self.device.alloc(dtype, len, name)?;
        self.by_name.insert(name.to_owned(), Tensor { buffer, dtype, len, kind });
        Ok(())
    }

    /// The memory in which plans keep their intermediate tensors, in place of what it was before: plans bound to that
    /// must have been released.
    pub fn alloc_arena(&mut self, bytes: usize) -> Result<()> {
        if let Some(old) = self.by_name.remove(ARENA) {
            self.device.free(old.buffer);
        }
        self.alloc(ARENA, DType::F32, bytes.div_ceil(4), MemoryKind::Activations)
    }

    /// Bytes of the arena.
    pub fn arena(&self) -> usize {
        self.by_name.get(ARENA).map_or(0, |arena| arena.len * 4)
    }

    /// Frees the arena; the plans bound to it must have been released.
    pub fn free_arena(&mut self) {
        self.free(ARENA);
    }

    /// Frees a tensor; the plans bound to it must have been released.
    pub fn free(&mut self, name: &str) {
        if let Some(tensor) = self.by_name.remove(name) {
            self.device.free(tensor.buffer);
        }
    }

    /// Overwrites the first elements with little-endian values of the tensor's type.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let buffer = self.get(name)?.buffer;
        Ok(self.device.write(buffer, 0, data)?)
    }

    pub fn write_f32(&mut self, name: &str, data: &[f32]) -> Result<()> {
        self.write(name, bytemuck::cast_slice(data))
    }

    pub fn write_u32(&mut self, name: &str, data: &[u32]) -> Result<()> {
        self.write(name, bytemuck::cast_slice(data))
    }

    /// The first `len` elements of an f32 tensor.
    pub fn read_f32(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let mut out = vec![0f32; len];
        let buffer = self.get(name)?.buffer;
        self.device.read(buffer, 0, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// All bytes of a tensor, in its type.
    pub fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.get(name)?;
        let (buffer, bytes) = (tensor.buffer, tensor.len * tensor.dtype.size());
        let mut out = vec![0; bytes];
        self.device.read(buffer, 0, &mut out)?;
        Ok(out)
    }

    pub fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.get(name)?.dtype)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Binds a plan to the tensors of its externals' names.
    pub fn prepare(&mut self, plan: &Plan) -> Result<PlanId> {
        let externals = plan.externals.iter().map(|e| Ok(self.get(&e.name)?.buffer)).collect::<Result<Vec<_>>>()?;
        let arena = self.get(ARENA)?;
        if arena.len * 4 < plan.arena {
            return Err(Error::Training(format!(
                "a plan needs an arena of {} bytes, {} were reserved",
                plan.arena,
                arena.len * 4
            )));
        }
        let arena = arena.buffer;
        Ok(self.device.prepare(plan, arena, &externals)?)
    }

    pub fn run(&mut self, plan: PlanId) -> Result<()> {
        Ok(self.device.run(plan)?)
    }

    /// [`Tensors::run`] with the time of each call.
    pub fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>> {
        Ok(self.device.run_profiled(plan)?)
    }

    /// What the device can do at best.
    pub fn ceiling(&mut self) -> Result<Ceiling> {
        Ceiling::measure(&mut *self.device)
    }

    pub fn release(&mut self, plan: PlanId) {
        self.device.release(plan);
    }

    /// Bytes allocated, by kind.
    pub fn memory(&self) -> BTreeMap<MemoryKind, u64> {
        let mut memory = BTreeMap::new();
        for tensor in self.by_name.values() {
            *memory.entry(tensor.kind).or_default() += (tensor.len * tensor.dtype.size()) as u64;
        }
        memory
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.by_name.get(name).ok_or_else(|| Error::Training(format!("no tensor `{name}` is on the device")))
    }
}
