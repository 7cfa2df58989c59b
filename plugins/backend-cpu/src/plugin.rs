use crate::{Cpu, DEVICE};
use sparta_graph::{Backend, BackendError, DeviceInfo, Op};
use sparta_plugin::backend::{BackendPlugin, BackendPluginInfo};

/// The CPU as a backend plugin.
pub struct Plugin;

impl BackendPlugin for Plugin {
    fn describe(&self) -> BackendPluginInfo {
        let ops = Op::NAMES.iter().map(|&name| name.into()).collect();
        BackendPluginInfo { name: DEVICE.into(), version: env!("CARGO_PKG_VERSION").into(), ops: Some(ops) }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![Cpu::new(None)?.info()])
    }

    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        if device != DEVICE {
            let reason = format!("there is no device `{device}` here, only `{DEVICE}`");
            return Err(BackendError::Other { device: device.into(), reason });
        }
        Ok(Box::new(Cpu::new(None)?))
    }
}

sparta_plugin::export_backend!(entry: Plugin);
