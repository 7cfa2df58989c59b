use sparta_graph::{Backend, BackendError, DeviceInfo, Op};
use sparta_plugin::backend::{BackendPlugin, BackendPluginInfo};

/// CUDA devices as a backend plugin.
pub struct Plugin;

impl BackendPlugin for Plugin {
    fn describe(&self) -> BackendPluginInfo {
        let ops = Op::NAMES.iter().map(|&name| name.into()).collect();
        BackendPluginInfo { name: "cuda".into(), version: env!("CARGO_PKG_VERSION").into(), ops: Some(ops) }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(Vec::new())
    }

    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        Err(BackendError::Other { device: device.into(), reason: "no CUDA device was found".into() })
    }
}

sparta_plugin::export_backend!(entry: Plugin);
