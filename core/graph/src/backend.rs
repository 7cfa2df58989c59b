use crate::ops::OwnKernel;
use crate::{DType, Graph, Plan, expand};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A tensor's memory on a device, made by [`Backend::alloc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u64);

/// A plan with its memory bound, made by [`Backend::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanId(pub u64);

/// A piece of work for [`Backend::submit`].
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// Overwrites elements as [`Backend::write`] does.
    Write { buffer: BufferId, offset: usize, data: &'a [u8] },
    /// Runs a plan as [`Backend::run`] does.
    Run(PlanId),
}

/// A requested read, not fetched yet.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadId {
    /// Not finished; the number is the backend's own.
    Pending(u64),
    /// The bytes, available at once.
    Ready(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    DiscreteGpu,
    IntegratedGpu,
    VirtualGpu,
    /// A CPU behind a graphics interface, such as llvmpipe.
    SoftwareGpu,
    Cpu,
    Other,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu`, `wgpu:0` ...: what `--device` accepts.
    pub id: String,
    pub name: String,
    pub kind: DeviceKind,
    /// The card's address, `0000:01:00.0` on a PCI bus, which identifies a card listed by two backends. `None` if the
    /// driver does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// API and driver with their versions.
    pub driver: String,
    /// Bytes of memory available to one process, if the driver reports them; for an open device, what other processes
    /// leave.
    pub memory: Option<u64>,
    /// Bytes of the largest single buffer.
    pub max_buffer: u64,
    /// Bytes of a buffer that the WGSL kernels can bind at once: larger tensors are processed in shards, and an operand
    /// that a kernel needs whole must not be larger. `None` for a backend with its own kernels, without this limit.
    #[serde(default)]
    pub max_binding: Option<u64>,
    /// Whether a plan's arena may consist of several buffers.
    #[serde(default)]
    pub segments: bool,
    /// Whether plans may let an output share memory with an input ([`crate::Op::reuses`]).
    #[serde(default)]
    pub in_place: bool,
    /// Types that activations may have in plans for this device; f32 alone by default.
    #[serde(default = "only_f32")]
    pub activations: Vec<DType>,
    /// 16-bit types that the device multiplies in hardware faster than f32.
    #[serde(default)]
    pub products: Vec<DType>,
    /// How 16-bit floats are multiplied, as text: `matrix units 16x16x16 f16`, or `f32` if they are multiplied like
    /// f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<String>,
    /// Whether attention in bf16 rounds probabilities and gradients of scores to bf16 before multiplying, as for matrix
    /// units; otherwise only its results are rounded.
    #[serde(default)]
    pub rounds_in_attention: bool,
    /// Whether the device multiplies f32 in TF32 where a plan allows it ([`Plan::tf32`]).
    #[serde(default)]
    pub tf32: bool,
    /// The costs by which the device chooses between sampled and dense gradients; `None` if it does not choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_cost: Option<SampledCost>,
    /// The kinds of kernels that the device runs for plugins' own operations ([`crate::ops::Own`]); otherwise plans
    /// contain the subgraph.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_kernels: Vec<OwnKernel>,
}

/// The cost of a multiplication in the dot product of a chosen element, relative to one in a dense matrix product, by
/// the operands' types: if a larger share than 1 / this is chosen, gradients are taken from the dense product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledCost {
    pub f32: u32,
    pub bf16: u32,
}

/// A choice among kernels that differ only in the order of their sums: its numbers by name.
pub type Choice = BTreeMap<String, u32>;

/// The choices that a device has made by measuring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuned {
    /// For which adapter, driver and kernels they were made.
    pub device: String,
    /// By what they are for.
    pub choices: BTreeMap<String, Choice>,
}

impl DeviceInfo {
    /// Bytes of the largest segment of a plan's arena.
    pub fn segment_limit(&self) -> usize {
        if self.segments { usize::try_from(self.max_buffer).unwrap_or(usize::MAX) } else { usize::MAX }
    }

    /// The plan of a graph on this device.
    pub fn plan(&self, graph: &Graph) -> Plan {
        self.plan_within(graph, &[])
    }

    /// The plan of a graph on this device, given an arena with segments of `reserved` bytes.
    pub fn plan_within(&self, graph: &Graph, reserved: &[usize]) -> Plan {
        // If plans can have only one segment, it grows as needed.
        let reserved = if self.segments { reserved } else { &[] };
        Plan::within(&expand(graph, &self.own_kernels), self.in_place, reserved, self.segment_limit())
    }
}

fn only_f32() -> Vec<DType> {
    vec![DType::F32]
}

/// Memory that a backend has allocated on its device: tensors, arenas and scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Bytes in use now.
    pub in_use: u64,
    /// Peak bytes in use.
    pub peak: u64,
    /// The part of those in use that prepared plans take besides arenas and tensors: scratch memory and launch
    /// parameters. 0 if a backend does not report it.
    #[serde(default)]
    pub plans: u64,
}

/// Bytes in GiB, or in MiB below one GiB.
pub fn memory_size(bytes: u64) -> String {
    const MIB: f64 = 1048576.0;
    match bytes as f64 / MIB {
        mib if mib < 1024.0 => format!("{mib:.1} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

/// Errors of a device.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendError {
    #[error(
        "{device}: out of memory while allocating {} for {what}; end other programs, or lower \
         --micro-batch-tokens",
        memory_size(*bytes)
    )]
    OutOfMemory { device: String, what: String, bytes: u64 },
    #[error("{device}: the device was lost during {during}: {reason}")]
    DeviceLost { device: String, during: String, reason: String },
    #[error("{device}: {op}: {reason}")]
    Op { device: String, op: String, reason: String },
    #[error("{device}: {reason}")]
    Other { device: String, reason: String },
}

/// A device that holds tensors and runs plans. The same few calls cross the plugin ABI.
///
/// Calls are made from one thread at a time. `run` and `submit` may return before the device has finished; `read` waits
/// for everything submitted before it, `fetch` for what its request needs.
pub trait Backend: Send {
    fn info(&self) -> DeviceInfo;

    /// Zero-filled memory for `len` elements; `label` names the tensor in error messages.
    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError>;

    fn free(&mut self, buffer: BufferId);

    /// The memory that this backend has allocated; `None` if it does not count.
    fn memory_use(&self) -> Option<MemoryUse> {
        None
    }

    /// Checks that the backend has every operation of a plan, before a run starts. The default is for backends that
    /// have all of them.
    ///
    /// Errors: a missing operation.
    fn supports(&self, plan: &Plan) -> Result<(), BackendError> {
        let _ = plan;
        Ok(())
    }

    /// From now on, measures which of several equivalent kernels is fastest, whenever a plan needs a choice that is
    /// neither stored nor among the `known` ones, which are those of a resumed run. Does nothing on a device that has
    /// no choices.
    ///
    /// Returns a warning if stored choices cannot be used.
    fn autotune(&mut self, known: Option<&Tuned>) -> Option<String> {
        let _ = known;
        None
    }

    /// The measured choices that the plans so far depend on; `None` if the device does not measure.
    fn tuned(&self) -> Option<Tuned> {
        None
    }

    /// Overwrites elements from element `offset` on. `data` holds little-endian values of the buffer's dtype; for
    /// 2-byte dtypes `offset` is even.
    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError>;

    /// Reads elements from element `offset` on into `out`, in the form that `write` takes.
    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError>;

    /// Binds a plan: `arena[i]` is an f32 buffer of at least `plan.arena_buffers()[i]` bytes, `externals[i]` the buffer
    /// in which `plan.externals[i]` lies from its `offset` on.
    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError>;

    /// Runs every call of the plan in order, as one submission where the device allows.
    fn run(&mut self, plan: PlanId) -> Result<(), BackendError>;

    /// Does pieces of work in order, in one upload and one submission if the device allows.
    ///
    /// Errors: those of `write` and `run`. The work before the failing piece may have been done.
    fn submit(&mut self, work: &[Work]) -> Result<(), BackendError> {
        for piece in work {
            match *piece {
                Work::Write { buffer, offset, data } => self.write(buffer, offset, data)?,
                Work::Run(plan) => self.run(plan)?,
            }
        }
        Ok(())
    }

    /// Requests `bytes` bytes from element `offset` on, as they will be after all work submitted so far. Asynchronous
    /// devices do not wait here; the default is for devices that are done when `run` returns.
    fn request(&mut self, buffer: BufferId, offset: usize, bytes: usize) -> Result<ReadId, BackendError> {
        let mut out = vec![0; bytes];
        self.read(buffer, offset, &mut out)?;
        Ok(ReadId::Ready(out))
    }

    /// Waits for a requested read and copies it into `out`, in the form that `write` takes.
    ///
    /// Errors: `out` is not of the requested length; a request of another backend; those of `read`.
    fn fetch(&mut self, read: ReadId, out: &mut [u8]) -> Result<(), BackendError> {
        let copied = match read {
            ReadId::Ready(bytes) => copy_ready(&bytes, out),
            ReadId::Pending(id) => Err(format!("there is no requested read {id}")),
        };
        copied.map_err(|reason| BackendError::Other { device: self.info().id, reason })
    }

    /// As [`Backend::run`], and returns the time of each of the plan's calls, in order. Waits for the device.
    ///
    /// Errors: those of `run`; a device that cannot time single calls.
    fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>, BackendError> {
        let _ = plan;
        let reason = "this backend cannot time single calls, which --profile and bench need".into();
        Err(BackendError::Other { device: self.info().id, reason })
    }

    fn release(&mut self, plan: PlanId);
}

/// Implements [`Backend::fetch`] for [`ReadId::Ready`].
///
/// Errors: a length other than requested.
pub fn copy_ready(bytes: &[u8], out: &mut [u8]) -> Result<(), String> {
    if bytes.len() != out.len() {
        return Err(format!("{} bytes were requested, but {} are fetched", bytes.len(), out.len()));
    }
    out.copy_from_slice(bytes);
    Ok(())
}
