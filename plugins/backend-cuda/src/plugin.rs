use crate::backend::CudaBackend;
use crate::compile::Cache;
use crate::gpu::{Card, Gpu, NoDriver, Settings, Tools};
use crate::libraries::Search;
use crate::machine::Failure;
use sparta_graph::{Backend, BackendError, DeviceInfo, Op};
use sparta_plugin::backend::{BackendPlugin, BackendPluginInfo};
use std::sync::OnceLock;

/// CUDA devices as a backend plugin.
pub struct Plugin;

/// The backend's name in `--device`.
const NAME: &str = "cuda";

impl BackendPlugin for Plugin {
    fn describe(&self) -> BackendPluginInfo {
        let ops = Op::NAMES.iter().map(|&name| name.into()).collect();
        BackendPluginInfo { name: NAME.into(), version: env!("CARGO_PKG_VERSION").into(), ops: Some(ops) }
    }

    /// Empty if there is no driver or no card. Uses no memory on any card.
    ///
    /// Errors: a driver that does not start; a missing library.
    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        match tools() {
            Ok(tools) => Ok(tools.cards.iter().map(|card| tools.info(card)).collect()),
            Err(NoDriver::Absent(_)) => Ok(Vec::new()),
            Err(NoDriver::Broken(reason)) => Err(error(NAME, reason.clone())),
        }
    }

    /// Errors: those of `devices`; no such device, and why; a failure of the device.
    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        let tools = tools().map_err(|none| error(device, none.reason().to_owned()))?;
        let id = |card: &Card| tools.info(card).id;
        let card = tools.cards.iter().find(|card| id(card) == device).ok_or_else(|| {
            let ids: Vec<String> = tools.cards.iter().map(id).collect();
            error(device, format!("there is no device `{device}` here, only {}", ids.join(", ")))
        })?;
        let gpu = Gpu::open(tools, card).map_err(|failure| match failure {
            Failure::OutOfMemory { bytes } => {
                BackendError::OutOfMemory { device: device.into(), what: "opening the device".into(), bytes }
            }
            Failure::Lost(reason) | Failure::Other(reason) => error(device, reason),
        })?;
        Ok(Box::new(CudaBackend::new(Box::new(gpu))?))
    }
}

/// The cards and libraries, found on first use.
fn tools() -> Result<&'static Tools, &'static NoDriver> {
    static TOOLS: OnceLock<Result<Tools, NoDriver>> = OnceLock::new();
    let load = || Tools::load(&Search::of_environment(), Cache::of_user(), Settings::of_environment());
    TOOLS.get_or_init(load).as_ref()
}

fn error(device: &str, reason: String) -> BackendError {
    BackendError::Other { device: device.into(), reason }
}

sparta_plugin::export_backend!(entry: Plugin);
