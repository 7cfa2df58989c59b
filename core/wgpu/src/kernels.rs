//! Kernels: their WGSL, embedded, and the pipelines made from it.

use crate::report::{Caught, scoped};
use std::collections::HashMap;

/// A kernel with its specialisation constants, of which LANES, the threads of a workgroup, is always one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub name: &'static str,
    pub constants: Constants,
}

/// Names and values that come before a kernel's text.
pub(crate) type Constants = Vec<(&'static str, u32)>;

impl Kernel {
    pub fn lanes(&self) -> u32 {
        self.constants.iter().find(|(name, _)| *name == "LANES").map_or(LANES, |(_, lanes)| *lanes)
    }
}

/// Threads of a workgroup, where a kernel does not ask for another number.
pub(crate) const LANES: u32 = 256;

/// The binding of the random key in kernels that read one; storage buffers are bound from 1 on.
pub(crate) const RNG_BINDING: u32 = 9;

macro_rules! shaders {
    ($($name:literal),+ $(,)?) => {
        /// The text of a file in `shaders/`.
        fn shader(name: &str) -> Option<&'static str> {
            match name {
                $($name => Some(include_str!(concat!("../../../shaders/", $name, ".wgsl"))),)+
                _ => None,
            }
        }

        #[cfg(test)]
        pub(crate) const SHADERS: &[&str] = &[$($name),+];
    };
}

shaders!(
    "prelude",
    "accumulate",
    "activation",
    "adam",
    "add",
    "attention",
    "attention_delta",
    "attention_grad_kv",
    "attention_grad_q",
    "attention_grad_sum",
    "attention_grad_tile",
    "attention_tile",
    "cast",
    "clip_coef",
    "column_sum",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_sum",
    "dropout",
    "embed",
    "embed_grad",
    "fill",
    "gated_act",
    "gated_act_grad",
    "gather",
    "linear",
    "linear_small",
    "rms_norm",
    "rms_norm_grad",
    "rms_norm_grad_w",
    "rms_norm_rate",
    "rope",
    "sampled_grad",
    "sampled_grad_tiled",
    "scale",
    "scatter",
    "scatter_rows",
    "soft_cap",
    "soft_cap_grad",
    "sum_of_squares",
);

/// Files that come before a kernel's own.
fn shared(name: &str) -> &'static [&'static str] {
    match name {
        "attention" => &["prelude", "attention_tile"],
        "attention_grad_q" | "attention_grad_kv" => &["prelude", "attention_tile", "attention_grad_tile"],
        "gated_act" | "gated_act_grad" => &["prelude", "activation"],
        _ => &["prelude"],
    }
}

/// The whole WGSL of a kernel: constants, shared files, its own file. `None` for a name without a file.
pub(crate) fn source(kernel: &Kernel) -> Option<String> {
    let mut text = String::new();
    if !kernel.constants.iter().any(|(name, _)| *name == "LANES") {
        text += &format!("const LANES: u32 = {LANES}u;\n");
    }
    for (name, value) in &kernel.constants {
        text += &format!("const {name}: u32 = {value}u;\n");
    }
    for file in shared(kernel.name).iter().chain([&kernel.name]) {
        text += shader(file)?;
    }
    Some(text)
}

/// A compiled kernel and the layout of its bindings.
#[derive(Clone)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Pipelines by kernel, layouts by what they bind.
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
        let text = source(kernel).ok_or_else(|| Caught::Other(format!("there is no kernel `{}`", kernel.name)))?;
        let pipeline = scoped(device, || compile(device, kernel.name, text, &pipeline_layout))?;
        let pipeline = Pipeline { pipeline, layout };
        self.pipelines.insert(kernel.clone(), pipeline.clone());
        Ok(pipeline)
    }
}

fn compile(device: &wgpu::Device, name: &str, text: String, layout: &wgpu::PipelineLayout) -> wgpu::ComputePipeline {
    let source = wgpu::ShaderSource::Wgsl(text.into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(name), source };
    // SAFETY: the text is our own. Every loop ends, no division is by zero, and every index that comes from data
    // (tokens, labels, spans, indices, row pointers) is compared with the bound range before it is used; all others
    // follow from shapes, which the graph and the lowering have checked.
    let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(name),
        layout: Some(layout),
        module: &module,
        entry_point: Some("main"),
        // Kernels write their workgroup memory before they read it.
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
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
