use crate::gpu::{Card, Driver, Gpu, NoDriver, Tools};
use crate::machine::Failure;
use sparta_graph::{Backend, BackendError, DeviceInfo, Op};
use sparta_plugin::backend::{BackendPlugin, BackendPluginInfo};

/// CUDA devices as a backend plugin.
pub struct Plugin;

/// What `--device` calls the backend.
const NAME: &str = "cuda";

impl BackendPlugin for Plugin {
    fn describe(&self) -> BackendPluginInfo {
        let ops = Op::NAMES.iter().map(|&name| name.into()).collect();
        BackendPluginInfo { name: NAME.into(), version: env!("CARGO_PKG_VERSION").into(), ops: Some(ops) }
    }

    /// Empty where there is no driver or no card. Makes no context on any card.
    ///
    /// Errors: a driver that does not start; a library that is missing beside it.
    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        match found() {
            Ok((tools, cards)) => Ok(cards.iter().map(|card| tools.info(card)).collect()),
            Err(NoDriver::Absent(_)) => Ok(Vec::new()),
            Err(NoDriver::Broken(reason)) => Err(error(NAME, reason)),
        }
    }

    /// Errors: as [`Plugin::devices`], and why there is no such device.
    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        let (tools, cards) = found().map_err(|none| match none {
            NoDriver::Absent(reason) | NoDriver::Broken(reason) => error(device, reason),
        })?;
        let wanted = |card: &&Card| tools.info(card).id == device;
        let card = cards.iter().find(wanted).ok_or_else(|| {
            let ids: Vec<String> = cards.iter().map(|card| tools.info(card).id).collect();
            error(device, format!("there is no device `{device}` here, only {}", ids.join(", ")))
        })?;
        let gpu = Gpu::open(&tools, card).map_err(|failure| match failure {
            Failure::OutOfMemory { bytes } => {
                BackendError::OutOfMemory { device: device.into(), what: "the device's opening".into(), bytes }
            }
            Failure::Lost(reason) | Failure::Other(reason) => error(device, reason),
        })?;
        drop(gpu);
        Err(error(device, String::new()))
    }
}

fn found() -> Result<(Tools, Vec<Card>), NoDriver> {
    let driver = Driver::get()?;
    let cards = driver.cards().map_err(NoDriver::from)?;
    if cards.is_empty() {
        return Err(NoDriver::Absent(format!("{} finds no card", driver.title())));
    }
    Ok((Tools::of(driver).map_err(NoDriver::Broken)?, cards))
}

fn error(device: &str, reason: String) -> BackendError {
    BackendError::Other { device: device.into(), reason }
}

sparta_plugin::export_backend!(entry: Plugin);
