//! Compiles kernels to pipelines.

use crate::report::{Caught, scoped};
use sparta_kernels::{Kernel, READ, READ_WRITE, RNG_BINDING, writes};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A compiled kernel and the layout of its bindings.
#[derive(Clone)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Caches pipelines by kernel, and layouts by which storage buffers they only read, and whether there is a random key.
#[derive(Default)]
pub(crate) struct Cache {
    kernels: HashMap<Kernel, Compiled>,
    layouts: HashMap<(Vec<bool>, bool), (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
}

struct Compiled {
    text: String,
    /// Which storage bindings it writes.
    writes: Vec<bool>,
    /// With all bindings writable, and with those that it only reads as read-only.
    pipelines: [Option<Pipeline>; 2],
}

impl Compiled {
    fn new(kernel: &Kernel, storage: usize) -> Result<Self, Caught> {
        let text = kernel.source().map_err(Caught::Other)?;
        Ok(Compiled { writes: writes(&text, storage), text, pipelines: [None, None] })
    }

    /// Whether no buffer that is only read is also written.
    fn apart(&self, places: &[wgpu::BufferBinding]) -> bool {
        let all = || places.iter().zip(&self.writes);
        let written = |buffer: &wgpu::Buffer| all().any(|(place, &writes)| writes && place.buffer == buffer);
        all().all(|(place, &writes)| writes || !written(place.buffer))
    }
}

impl Cache {
    /// The pipeline of a kernel that binds these storage buffers, and the random key if `rng`.
    ///
    /// wgpu puts no barrier between two dispatches that only read a buffer, so the device may overlap them. But a
    /// dispatch cannot bind ranges of one buffer, such as the arena, as read-only and as writable.
    pub fn get(
        &mut self,
        device: &wgpu::Device,
        kernel: &Kernel,
        places: &[wgpu::BufferBinding],
        rng: bool,
    ) -> Result<Pipeline, Caught> {
        let compiled = match self.kernels.entry(kernel.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Compiled::new(kernel, places.len())?),
        };
        let apart = compiled.apart(places);
        if let Some(pipeline) = &compiled.pipelines[usize::from(apart)] {
            return Ok(pipeline.clone());
        }
        let reads: Vec<bool> = compiled.writes.iter().map(|writes| apart && !writes).collect();
        let (layout, pipeline_layout) =
            self.layouts.entry((reads, rng)).or_insert_with_key(|(reads, rng)| layouts(device, reads, *rng)).clone();
        let text = if apart { compiled.text.clone() } else { compiled.text.replace(READ, READ_WRITE) };
        let pipeline = scoped(device, || compile(device, kernel, text, &pipeline_layout))?;
        Ok(compiled.pipelines[usize::from(apart)].insert(Pipeline { pipeline, layout }).clone())
    }
}

fn compile(
    device: &wgpu::Device,
    kernel: &Kernel,
    text: String,
    layout: &wgpu::PipelineLayout,
) -> wgpu::ComputePipeline {
    let (name, own) = (kernel.name, kernel.own.is_some());
    let source = wgpu::ShaderSource::Wgsl(text.into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(name), source };
    let module = match own {
        // A plugin's: with all checks.
        true => device.create_shader_module(descriptor),
        // SAFETY: the text is our own. Every loop ends, no division is by zero, and every index that comes from data
        // (tokens, labels, spans, indices, row pointers) is compared with the bound range before it is used; all others
        // follow from shapes, which the graph and the lowering have checked.
        false => unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) },
    };
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(name),
        layout: Some(layout),
        module: &module,
        entry_point: Some("main"),
        // Our kernels write their workgroup memory before they read it.
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: own,
            ..Default::default()
        },
        cache: None,
    })
}

/// Binding 0: parameters. 1 and on: storage, read-only where `reads`. 9: the random key.
fn layouts(device: &wgpu::Device, reads: &[bool], rng: bool) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let uniform = wgpu::BufferBindingType::Uniform;
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, uniform)];
    let storage = reads.iter().map(|&read_only| wgpu::BufferBindingType::Storage { read_only });
    entries.extend((1..).zip(storage).map(|(binding, ty)| entry(binding, ty)));
    entries.extend(rng.then(|| entry(RNG_BINDING, uniform)));
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    (layout, pipeline_layout)
}
