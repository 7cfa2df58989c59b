//! The backends that are linked in, and `sparta-cli devices`.

use crate::output::{self, bytes, table};
use serde::Serialize;
use sparta_core::Result;
use sparta_core::device::{Devices, Provider};
use sparta_core::plugin::PluginSet;
use sparta_graph::{Backend, BackendError, DeviceInfo, DeviceKind};
use sparta_wgpu::{Adapter, WgpuBackend};

/// The adapters that wgpu finds: Vulkan, Metal, DX12.
struct Wgpu;

impl Provider for Wgpu {
    fn name(&self) -> &str {
        "wgpu"
    }

    fn devices(&self) -> std::result::Result<Vec<DeviceInfo>, BackendError> {
        Ok(sparta_wgpu::devices().into_iter().map(|adapter| adapter.info).collect())
    }

    fn open(&self, id: &str) -> std::result::Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(WgpuBackend::open(id)?))
    }
}

/// All devices: wgpu's, and those of backend plugins, the CPU among them.
pub fn find(plugins: &PluginSet) -> Devices {
    Devices::find(vec![Box::new(Wgpu)], plugins)
}

/// Opens the device that `--device` selects.
pub fn open(wanted: &str, plugins: &PluginSet) -> Result<Box<dyn Backend>> {
    let devices = find(plugins);
    devices.open(devices.select(wanted)?)
}

#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    info: &'a DeviceInfo,
    /// Whether `--device auto` would pick it.
    auto: bool,
    limits: Vec<(&'static str, String)>,
    features: Vec<String>,
}

pub fn list(plugins: &PluginSet, json: bool) -> Result<()> {
    let devices = find(plugins);
    let adapters = sparta_wgpu::devices();
    let auto = devices.select("auto").ok().map(|device| device.id.clone());
    let listed: Vec<Listed> = devices
        .list()
        .map(|info| {
            let adapter = adapters.iter().find(|adapter| adapter.info.id == info.id);
            let auto = auto.as_ref() == Some(&info.id);
            Listed { info, auto, limits: limits(info, adapter), features: adapter.map(features).unwrap_or_default() }
        })
        .collect();
    if json {
        return output::json_line(&listed);
    }
    let row = |d: &Listed| {
        let memory = d.info.memory.map_or("?".into(), bytes);
        let auto = if d.auto { "*" } else { "" };
        vec![
            auto.into(),
            d.info.id.clone(),
            kind(d.info.kind).into(),
            memory,
            d.info.name.clone(),
            d.info.driver.clone(),
        ]
    };
    output::print(table(&["", "ID", "TYPE", "MEMORY", "NAME", "DRIVER"], &listed.iter().map(row).collect::<Vec<_>>()))?;
    output::print("\n* what --device auto picks")?;
    for device in &listed {
        let limits: Vec<String> = device.limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
        output::print(format!("\n{}\n  limits    {}", device.info.id, limits.join(", ")))?;
        if let Some(multiplier) = &device.info.multiplier {
            output::print(format!("  16-bit floats are multiplied in {multiplier}"))?;
        }
        if !device.features.is_empty() {
            output::print(format!("  features  {}", device.features.join(", ")))?;
        }
    }
    for error in devices.failures() {
        output::print(format!("\n{error}"))?;
    }
    Ok(())
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::DiscreteGpu => "discrete GPU",
        DeviceKind::IntegratedGpu => "integrated GPU",
        DeviceKind::VirtualGpu => "virtual GPU",
        DeviceKind::SoftwareGpu => "software GPU",
        DeviceKind::Cpu => "CPU",
        DeviceKind::Other => "other",
    }
}

fn limits(info: &DeviceInfo, adapter: Option<&Adapter>) -> Vec<(&'static str, String)> {
    let mut limits = vec![("buffer", bytes(info.max_buffer))];
    limits.extend(info.max_binding.map(|most| ("binding", bytes(most))));
    if let Some(Adapter { limits: l, .. }) = adapter {
        let (least, most) = l.subgroup_size;
        limits.extend([
            ("workgroup memory", bytes(l.max_compute_workgroup_storage_size.into())),
            ("workgroup size", l.max_compute_invocations_per_workgroup.to_string()),
            ("workgroups", l.max_compute_workgroups_per_dimension.to_string()),
            ("buffers per shader", l.max_storage_buffers_per_shader_stage.to_string()),
            ("subgroup", if least == most { least.to_string() } else { format!("{least} to {most}") }),
        ]);
    }
    limits
}

/// The optional features that we use and the adapter has.
fn features(adapter: &Adapter) -> Vec<String> {
    let f = &adapter.features;
    let flags = [("f16 in shaders", f.shader_f16), ("subgroups", f.subgroups), ("timestamps", f.timestamp_query)];
    let flags = flags.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned());
    let shapes = f.cooperative_matrices.iter();
    let matrices = shapes.map(|c| format!("matrix units {}x{}x{} {} to {}", c.m, c.n, c.k, c.inputs, c.result));
    flags.chain(matrices).collect()
}
