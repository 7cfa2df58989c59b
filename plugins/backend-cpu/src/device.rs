use crate::backend::DEVICE;
use crate::simd;
use sparta_graph::{DeviceInfo, DeviceKind};
use std::fs;

/// The CPU as a device with that many worker threads.
pub fn info(threads: usize) -> DeviceInfo {
    let memory = memory();
    let plural = if threads == 1 { "" } else { "s" };
    DeviceInfo {
        id: DEVICE.into(),
        name: name().unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH)),
        kind: DeviceKind::Cpu,
        driver: format!("gemm, {threads} thread{plural}, {}", simd::isa().name()),
        memory,
        max_buffer: memory.unwrap_or(isize::MAX as u64),
        in_place: true,
    }
}

fn name() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Bytes of memory: the limit of the control group where one is set, else what the machine has.
fn memory() -> Option<u64> {
    let limit = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].map(limit);
    limits.into_iter().flatten().chain(total_memory()).min()
}

fn total_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
