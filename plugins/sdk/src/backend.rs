//! What a backend plugin provides: its devices, and a [`Backend`] on one of them.

use serde::{Deserialize, Serialize};

pub use sparta_graph::graph::TensorType;
pub use sparta_graph::ops;
pub use sparta_graph::plan::External;
pub use sparta_graph::{
    Backend, BackendError, BufferId, Call, DType, DeviceInfo, DeviceKind, MemoryUse, Op, Operand, Place, Plan, PlanId,
    ReadId, Work,
};

/// How a backend plugin describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendPluginInfo {
    /// What `--device` accepts, such as `cuda`.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// Names of the operations it supports: `sparta_graph::Op::NAMES` if it supports all that the SDK knows. A
    /// backend that leaves this out counts as one of ABI minor version 1, with the operations of that version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Vec<String>>,
}

/// A kind of devices.
pub trait BackendPlugin: Send + Sync {
    /// Its name, version and operations.
    fn describe(&self) -> BackendPluginInfo;

    /// The devices of this kind in the machine, possibly none.
    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError>;

    /// Opens the device with this [`DeviceInfo::id`].
    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError>;
}
