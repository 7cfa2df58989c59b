//! The backends that are compared with the reference.

use sparta_backend_cpu::Cpu;
use sparta_tests::Device;

pub fn cpu(threads: usize) -> Device {
    Device::Backend(Box::new(Cpu::new(Some(threads)).expect("threads")))
}

pub fn with_wgpu(mut _judge: impl FnMut(&str, &mut Device)) {}
