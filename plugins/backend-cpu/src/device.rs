use crate::backend::DEVICE;
use crate::product::Unit;
use crate::simd;
use sparta_graph::ops::OwnKernel;
use sparta_graph::{DType, DeviceInfo, DeviceKind};
use sparta_plugin::host_memory;
use std::fs;

/// The CPU as a device with this many worker threads. If its numbers are f32, plugins' functions may compute their own
/// operations on it.
pub fn info(threads: usize, f32s: bool) -> DeviceInfo {
    let memory = host_memory();
    let plural = if threads == 1 { "" } else { "s" };
    DeviceInfo {
        id: DEVICE.into(),
        name: name().unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH)),
        kind: DeviceKind::Cpu,
        card: None,
        driver: format!("gemm, {threads} thread{plural}, {}", simd::isa().name()),
        memory,
        max_buffer: memory.unwrap_or(isize::MAX as u64),
        max_binding: None,
        segments: true,
        in_place: true,
        activations: vec![DType::F32, DType::BF16],
        products: if Unit::in_hardware() { vec![DType::BF16] } else { vec![] },
        multiplier: Some(if Unit::in_hardware() { "bf16 instructions" } else { "f32" }.into()),
        rounds_in_attention: false,
        tf32: false,
        sampled_cost: None,
        own_kernels: if f32s { vec![OwnKernel::Function] } else { vec![] },
    }
}

fn name() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
