//! The backends that are compared with the reference.

use sparta_backend_cpu::Cpu;
use sparta_tests::Device;
use sparta_wgpu::{Options, WgpuBackend};
use std::sync::{Mutex, PoisonError};

pub fn cpu(threads: usize) -> Device {
    Device::Backend(Box::new(Cpu::new(Some(threads)).expect("threads")))
}

/// A wgpu device on which tensors above 80 KiB are several bindings.
const SPLITTING: &str = "wgpu with bindings of 80 KiB";

/// The wgpu devices of this process: pipelines are made once.
static WGPU: Mutex<Option<Vec<(&str, Device)>>> = Mutex::new(None);

/// Lends each wgpu device, one caller at a time.
pub fn with_wgpu(mut judge: impl FnMut(&str, &mut Device)) {
    let mut devices = WGPU.lock().unwrap_or_else(PoisonError::into_inner);
    let devices = devices.get_or_insert_with(open_wgpu);
    if devices.is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
    }
    devices.iter_mut().for_each(|(name, device)| judge(name, device));
}

fn open_wgpu() -> Vec<(&'static str, Device)> {
    if sparta_wgpu::devices().is_empty() {
        return vec![];
    }
    let open = |max_binding| {
        let backend = WgpuBackend::open_with(0, Options { max_binding });
        Device::Backend(Box::new(backend.unwrap_or_else(|e| panic!("{e}"))))
    };
    vec![("wgpu", open(None)), (SPLITTING, open(Some(80 << 10)))]
}

/// Whether a device may say no in this way: to what a kernel needs whole when bindings are small, and to loops that are
/// longer than a software driver runs them.
pub fn is_refusal(device: &str, failure: &str) -> bool {
    let small_bindings = ["this device binds at most", "more than a binding may have"];
    failure.contains("this software driver can loop over")
        || device == SPLITTING && small_bindings.iter().any(|text| failure.contains(text))
}
