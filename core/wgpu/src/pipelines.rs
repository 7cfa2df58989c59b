//! Compiles kernels to pipelines.

use crate::report::{Caught, scoped};
use sparta_kernels::{Kernel, RNG_BINDING};
use std::collections::HashMap;

/// A compiled kernel and the layout of its bindings.
#[derive(Clone)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Caches pipelines by kernel, and layouts by what they bind.
#[derive(Default)]
pub(crate) struct Cache {
    pipelines: HashMap<Kernel, Pipeline>,
    layouts: HashMap<(usize, bool), (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
}

impl Cache {
    /// The pipeline of a kernel that binds `storage` storage buffers, and the random key if `rng`.
    pub fn get(
        &mut self,
        device: &wgpu::Device,
        kernel: &Kernel,
        storage: usize,
        rng: bool,
    ) -> Result<Pipeline, Caught> {
        if let Some(pipeline) = self.pipelines.get(kernel) {
            return Ok(pipeline.clone());
        }
        let (layout, pipeline_layout) =
            self.layouts.entry((storage, rng)).or_insert_with(|| layouts(device, storage, rng)).clone();
        let text = kernel.source().map_err(Caught::Other)?;
        let pipeline = scoped(device, || compile(device, kernel, text, &pipeline_layout))?;
        let pipeline = Pipeline { pipeline, layout };
        self.pipelines.insert(kernel.clone(), pipeline.clone());
        Ok(pipeline)
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

/// Binding 0: parameters. 1 and on: storage, all read-write, because ranges of one buffer are bound as input and output
/// of one dispatch. 9: the random key.
fn layouts(device: &wgpu::Device, storage: usize, rng: bool) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let uniform = wgpu::BufferBindingType::Uniform;
    let read_write = wgpu::BufferBindingType::Storage { read_only: false };
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, uniform)];
    entries.extend((1..).take(storage).map(|binding| entry(binding, read_write)));
    entries.extend(rng.then(|| entry(RNG_BINDING, uniform)));
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    (layout, pipeline_layout)
}
