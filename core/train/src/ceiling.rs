//! The best a device can reach, against which profiles and benchmarks are measured.

use crate::Result;
use serde::{Deserialize, Serialize};
use sparta_graph::ops::{Accumulate, Layout, Linear, Store};
use sparta_graph::plan::External;
use sparta_graph::{Backend, BackendError, BufferId, DType, DeviceKind, Graph, Plan};
use std::time::{Duration, Instant};

/// The best rates that a device was measured to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Floating-point operations per second in a large product of f32 matrices.
    pub f32_flops: f64,
    /// The same for bf16 matrices, if the device supports such activations.
    pub bf16_flops: Option<f64>,
    /// Bandwidths by ascending size, since small operands stay in caches.
    pub bandwidth: Vec<Bandwidth>,
}

/// Bytes per second, reads plus writes, of an op whose operands have `bytes` bytes in total.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    pub bytes: u64,
    pub rate: f64,
}

/// Sides of the square matrices to try until a product takes [`LONG`].
const SIDES: [usize; 4] = [512, 1024, 2048, 4096];
const LONG: Duration = Duration::from_millis(20);
/// Elements of the vectors to add: operands of 192 KiB to 192 MiB.
const LENGTHS: [usize; 6] = [1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24];
/// Runs of each measurement; the fastest counts.
const RUNS: usize = 6;
/// How long a GPU works before it is timed, since its clock drops while idle.
const WARM_UP: Duration = Duration::from_millis(200);

impl Ceiling {
    /// Measures the device, using up to 192 MiB; takes a few tenths of a second on a CPU. What does not fit
    /// beside the tensors already there is left out.
    ///
    /// Errors: a device that fails, or that cannot time single calls.
    pub fn measure(device: &mut dyn Backend) -> Result<Ceiling> {
        let takes_bf16 = device.info().activations.contains(&DType::BF16);
        let f32_flops = product(device, DType::F32)?;
        let bf16_flops = if takes_bf16 { Some(product(device, DType::BF16)?) } else { None };
        let mut bandwidth = Vec::new();
        for length in LENGTHS {
            let bytes = 3 * 4 * length as u64;
            let plan = sum(device, length)?;
            let Some(time) = fitting(best_time(device, &plan, numbers))? else { break };
            bandwidth.push(Bandwidth { bytes, rate: bytes as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE) });
        }
        Ok(Ceiling { f32_flops, bf16_flops, bandwidth })
    }

    /// Operations per second of products with activations of this type.
    pub fn flops(&self, activations: DType) -> f64 {
        match self.bf16_flops {
            Some(flops) if activations == DType::BF16 => flops,
            _ => self.f32_flops,
        }
    }

    /// Bytes per second of memory beyond the caches.
    pub fn memory(&self) -> f64 {
        self.bandwidth.last().map_or(f64::INFINITY, |class| class.rate)
    }

    /// The shortest time, in seconds, for these operations and bytes.
    pub fn least_seconds(&self, activations: DType, flops: u64, bytes: u64) -> f64 {
        let rate = self.bandwidth.get(self.class(bytes)).map_or(f64::INFINITY, |class| class.rate);
        (flops as f64 / self.flops(activations)).max(bytes as f64 / rate)
    }

    /// Raises the ceiling to a rate that some other measurement reached.
    pub fn raise(&mut self, activations: DType, flops: u64, bytes: u64, seconds: f64) {
        if seconds <= 0.0 {
            return;
        }
        let known = match &mut self.bf16_flops {
            Some(known) if activations == DType::BF16 => known,
            _ => &mut self.f32_flops,
        };
        *known = known.max(flops as f64 / seconds);
        let class = self.class(bytes);
        if let Some(class) = self.bandwidth.get_mut(class) {
            class.rate = class.rate.max(bytes as f64 / seconds);
        }
    }

    /// The first size class of at least this many bytes, or the last.
    fn class(&self, bytes: u64) -> usize {
        let found = self.bandwidth.iter().position(|class| bytes <= class.bytes);
        found.unwrap_or(self.bandwidth.len().saturating_sub(1))
    }
}

/// Operations per second of the largest product tried.
fn product(device: &mut dyn Backend, dtype: DType) -> Result<f64> {
    let mut flops = 0.0;
    for side in SIDES {
        let mut graph = Graph::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| graph.external(name, dtype, [side, side]));
        let y = graph.one(Linear::plain(Layout::Nt), &[a, b])?;
        graph.apply(Store {}.into(), &[c, y])?;
        let plan = device.info().plan(&graph);
        let Some(time) = fitting(best_time(device, &plan, numbers))? else { break };
        flops = 2.0 * (side as f64).powi(3) / time.as_secs_f64().max(f64::MIN_POSITIVE);
        if time >= LONG {
            break;
        }
    }
    Ok(flops)
}

/// Reads two vectors and writes one.
fn sum(device: &dyn Backend, length: usize) -> Result<Plan> {
    let mut graph = Graph::new();
    let [x, y] = ["x", "y"].map(|name| graph.external(name, DType::F32, [length]));
    graph.apply(Accumulate {}.into(), &[x, y])?;
    Ok(device.info().plan(&graph))
}

/// `None` if the device has too little memory.
fn fitting(time: std::result::Result<Duration, BackendError>) -> Result<Option<Duration>> {
    match time {
        Ok(time) => Ok(Some(time)),
        Err(BackendError::OutOfMemory { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The time of a plan's fastest run. `data` gives the bytes of the tensors outside the plan.
///
/// Errors: those of the device; a device that cannot time single calls.
pub fn best_time(
    device: &mut dyn Backend,
    plan: &Plan,
    data: impl Fn(&External) -> Vec<u8>,
) -> std::result::Result<Duration, BackendError> {
    let mut buffers: Vec<BufferId> = Vec::new();
    let best = best_time_in(device, plan, data, &mut buffers);
    buffers.into_iter().for_each(|buffer| device.free(buffer));
    best
}

/// Leaves its allocations in `buffers`, even when it fails.
fn best_time_in(
    device: &mut dyn Backend,
    plan: &Plan,
    data: impl Fn(&External) -> Vec<u8>,
    buffers: &mut Vec<BufferId>,
) -> std::result::Result<Duration, BackendError> {
    for external in &plan.externals {
        buffers.push(device.alloc(external.ty.dtype, external.ty.numel(), &external.name)?);
    }
    let externals = buffers.clone();
    for bytes in plan.arena_buffers() {
        buffers.push(device.alloc(DType::F32, bytes.div_ceil(4), "arena")?);
    }
    for (external, &buffer) in plan.externals.iter().zip(&externals) {
        device.write(buffer, 0, &data(external))?;
    }
    let id = device.prepare(plan, &buffers[externals.len()..], &externals)?;
    let start = Instant::now();
    while !matches!(device.info().kind, DeviceKind::Cpu | DeviceKind::SoftwareGpu) && start.elapsed() < WARM_UP {
        device.run_profiled(id)?;
    }
    let runs = (0..RUNS).map(|_| Ok(device.run_profiled(id)?.iter().sum::<Duration>()));
    let times: std::result::Result<Vec<Duration>, BackendError> = runs.collect();
    device.release(id);
    Ok(times?.into_iter().min().unwrap_or_default())
}

/// Floats between -1 and 1 without a pattern that might make a device faster; zeros for other types.
pub fn numbers(external: &External) -> Vec<u8> {
    const BLOCK: u32 = 1 << 12;
    let n = external.ty.numel();
    let random = |i: usize| (i as u32 % BLOCK).wrapping_mul(0x9E37_79B9) as i32 as f32 / 2f32.powi(31);
    match external.ty.dtype {
        DType::F32 => (0..n).flat_map(|i| random(i).to_le_bytes()).collect(),
        DType::BF16 => (0..n).flat_map(|i| half::bf16::from_f32(random(i)).to_le_bytes()).collect(),
        dtype => vec![0; n * dtype.size()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceiling() -> Ceiling {
        let bandwidth = [(100, 50.0), (1000, 10.0)].map(|(bytes, rate)| Bandwidth { bytes, rate });
        Ceiling { f32_flops: 100.0, bf16_flops: Some(400.0), bandwidth: bandwidth.into() }
    }

    #[test]
    fn the_nearer_ceiling_of_type_and_size_counts() {
        let ceiling = ceiling();
        assert_eq!(ceiling.least_seconds(DType::F32, 200, 0), 2.0);
        assert_eq!(ceiling.least_seconds(DType::BF16, 200, 0), 0.5);
        assert_eq!(ceiling.least_seconds(DType::F32, 0, 100), 2.0);
        assert_eq!(ceiling.least_seconds(DType::F32, 0, 101), 10.1);
        assert_eq!(ceiling.least_seconds(DType::F32, 0, 5000), 500.0);
    }

    #[test]
    fn a_reached_rate_raises_only_the_ceiling_of_its_type_and_size() {
        let mut raised = ceiling();
        raised.raise(DType::BF16, 1000, 50, 1.0);
        raised.raise(DType::F32, 1, 100, 0.0);
        assert_eq!((raised.f32_flops, raised.bf16_flops), (100.0, Some(1000.0)));
        assert_eq!(raised.bandwidth, ceiling().bandwidth);
        raised.raise(DType::F32, 1, 90, 0.5);
        assert_eq!((raised.bandwidth[0].rate, raised.memory()), (180.0, 10.0));
    }
}
