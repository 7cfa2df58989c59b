//! The dispatches and copies of a plan, with their pipelines and bindings.

use crate::pipelines::Cache;
use crate::report::{Caught, scoped};
use crate::wait::IN_BROWSER;
use sparta_graph::Plan;
use sparta_graph::plan::ALIGNMENT;
use sparta_kernels::{Dispatch, Memory, RNG_BINDING, Step, View};

/// Workgroups per dimension of a launch, WebGPU's default limit.
const MAX_GROUPS: usize = 65_535;
/// Storage buffers of a dispatch, WebGPU's default limit.
pub(crate) const MOST_STORAGE: usize = 8;

/// A plan with its pipelines and bindings.
pub(crate) struct Prepared {
    pub steps: Vec<PreparedStep>,
    /// The work of each step.
    pub work: Vec<f64>,
    /// Where each call's steps end.
    pub ends: Vec<usize>,
    /// Bytes of the parameters of all launches.
    pub parameters: u64,
    pub scratch: wgpu::Buffer,
}

pub(crate) enum PreparedStep {
    Dispatch { pipeline: wgpu::ComputePipeline, bindings: wgpu::BindGroup, groups: (u32, u32) },
    Copy { from: (wgpu::Buffer, u64), to: (wgpu::Buffer, u64), bytes: u64 },
}

/// A step of the call `name` with its pipeline and bindings. `slot` is where its parameters are.
pub(crate) fn prepare(
    device: &wgpu::Device,
    pipelines: &mut Cache,
    name: &str,
    step: &Step,
    memory: &PlanMemory,
    slot: &mut u64,
) -> Result<PreparedStep, Caught> {
    match step {
        Step::Copy { from, to } => {
            let at = |view: &View| {
                let (buffer, offset) = memory.at(view, 0);
                (buffer.clone(), offset)
            };
            Ok(PreparedStep::Copy { from: at(from), to: at(to), bytes: from.bytes as u64 })
        }
        Step::Dispatch(launch) => {
            let offset = *slot * ALIGNMENT as u64;
            *slot += 1;
            dispatch(device, pipelines, name, launch, memory, offset)
        }
    }
}

fn dispatch(
    device: &wgpu::Device,
    pipelines: &mut Cache,
    name: &str,
    launch: &Dispatch,
    memory: &PlanMemory,
    params_offset: u64,
) -> Result<PreparedStep, Caught> {
    let params = wgpu::BufferBinding {
        buffer: &memory.params,
        offset: params_offset,
        size: std::num::NonZeroU64::new(params_bytes(launch)),
    };
    let bind = |view: &View, number: usize| {
        let (buffer, offset) = memory.at(view, number);
        wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(view.bytes as u64) }
    };
    let entry =
        |binding: u32, buffer| wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(buffer) };
    let mut entries = vec![entry(0, params)];
    let places: Vec<wgpu::BufferBinding> = launch.bindings.iter().enumerate().map(|(i, view)| bind(view, i)).collect();
    debug_assert!(!overlap(&places), "{name}: two bindings overlap, which WebGPU refuses");
    let pipeline = pipelines.get(device, &launch.kernel, &places, launch.rng.is_some())?;
    entries.extend((1u32..).zip(places).map(|(i, place)| entry(i, place)));
    entries.extend(launch.rng.iter().map(|view| entry(RNG_BINDING, bind(view, 0))));
    let descriptor = wgpu::BindGroupDescriptor { label: Some(name), layout: &pipeline.layout, entries: &entries };
    let bindings = bind_group(device, &descriptor)?;
    Ok(PreparedStep::Dispatch { pipeline: pipeline.pipeline, bindings, groups: launch.grid(MAX_GROUPS) })
}

/// In a browser each error scope is a round trip to another process, and a plan has hundreds of bind groups: their errors
/// surface at the next check.
fn bind_group(device: &wgpu::Device, descriptor: &wgpu::BindGroupDescriptor) -> Result<wgpu::BindGroup, Caught> {
    let create = || device.create_bind_group(descriptor);
    if IN_BROWSER { Ok(create()) } else { scoped(device, create) }
}

/// Whether two bindings overlap.
fn overlap(places: &[wgpu::BufferBinding]) -> bool {
    let end = |place: &wgpu::BufferBinding| place.offset + place.size.map_or(0, std::num::NonZeroU64::get);
    let meet = |a: &wgpu::BufferBinding, b: &wgpu::BufferBinding| {
        a.buffer == b.buffer && a.offset < end(b) && b.offset < end(a)
    };
    places.iter().enumerate().any(|(i, a)| places[..i].iter().any(|b| meet(a, b)))
}

/// Encodes either one copy, or dispatches as one pass.
pub(crate) fn encode(
    encoder: &mut wgpu::CommandEncoder,
    run: &[PreparedStep],
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites>,
) {
    if let [PreparedStep::Copy { from, to, bytes }] = run {
        return encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes);
    }
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
    for step in run {
        if let PreparedStep::Dispatch { pipeline, bindings, groups } = step {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bindings, &[]);
            pass.dispatch_workgroups(groups.0, groups.1, 1);
        }
    }
}

/// The buffers a plan is bound to.
pub(crate) struct PlanMemory<'p> {
    pub plan: &'p Plan,
    /// A buffer for each segment.
    pub arena: Vec<wgpu::Buffer>,
    /// Each external with the byte at which it begins in its buffer.
    pub externals: Vec<(wgpu::Buffer, u64)>,
    pub scratch: wgpu::Buffer,
    pub unused: wgpu::Buffer,
    pub params: wgpu::Buffer,
}

impl PlanMemory<'_> {
    /// The buffer of a view, and the byte at which it begins there. `number` keeps the unused bindings of a dispatch apart, as
    /// WebGPU forbids overlaps.
    fn at(&self, view: &View, number: usize) -> (&wgpu::Buffer, u64) {
        let offset = view.offset as u64;
        match view.memory {
            Memory::Arena => {
                let (segment, begin) = self.plan.locate(view.offset);
                // `prepare` has checked that there is a buffer for every segment.
                (self.arena.get(segment).unwrap_or(&self.unused), begin as u64)
            }
            // `prepare` has checked that there is a buffer for every external.
            Memory::External(i) => {
                self.externals.get(i).map_or((&self.unused, 0), |(buffer, begin)| (buffer, begin + offset))
            }
            Memory::Scratch => (&self.scratch, offset),
            Memory::Unused => (&self.unused, offset + (number * ALIGNMENT) as u64),
        }
    }
}

/// The size of a kernel's `Params`, which WGSL rounds up to 16 only for members that need it: 4 bytes each.
fn params_bytes(dispatch: &Dispatch) -> u64 {
    4 * dispatch.params.len() as u64
}

/// The parameters of a dispatch at the width of a slot.
pub(crate) fn params_slot(step: &Step) -> Vec<u8> {
    let Step::Dispatch(dispatch) = step else { return Vec::new() };
    let mut bytes: Vec<u8> = dispatch.params.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(ALIGNMENT, 0);
    bytes
}
