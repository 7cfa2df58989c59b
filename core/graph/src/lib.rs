//! The compute graph: coarse operations in SSA form, their gradients, the memory plan, and the interface that every
//! backend implements. This crate does no arithmetic on tensors.

mod arena;
pub mod autodiff;
pub mod backend;
pub mod blocks;
pub mod dtype;
pub mod expand;
pub mod graph;
pub mod ops;
pub mod philox;
mod placement;
pub mod plan;
pub mod probe;
pub mod recompute;

pub use autodiff::{GradRequest, gradients};
pub use backend::{
    Backend, BackendError, BufferId, Choice, DeviceInfo, DeviceKind, MemoryUse, PlanId, ReadId, SampledCost, Tuned,
    Work, copy_ready, memory_size,
};
pub use blocks::Blocks;
pub use dtype::DType;
pub use expand::expand;
pub use graph::{Graph, GraphError, Node, Value, ValueInfo};
pub use ops::{Op, PartCall, Rows, Slot};
pub use philox::philox4x32_10;
pub use plan::{Call, Operand, Place, Plan};
pub use probe::{Probe, probe};
pub use recompute::{recompute, recompute_cheap};
