use crate::wait::{IN_BROWSER, block_on};
use sparta_graph::ops::OwnKernel;
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{DType, DeviceInfo, DeviceKind};
use sparta_kernels::{MatrixUnits, sampled_cost};
use std::sync::OnceLock;
use tracing::{debug, info};

/// The graphics APIs this backend runs on, without OpenGL: its compute shaders lack what the kernels need.
const BACKENDS: wgpu::Backends = match IN_BROWSER {
    true => wgpu::Backends::BROWSER_WEBGPU,
    false => wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12),
};

/// wgpu's storage bindings end below 2 GiB.
const MAX_BINDING: u64 = (1 << 31) - ALIGNMENT as u64;

/// PCI vendor ids.
const NVIDIA: u32 = 0x10de;
const AMD: u32 = 0x1002;

/// An adapter as reported by its driver.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What the runtime knows about it; `id` is `wgpu:N` with its position in [`devices`].
    pub info: DeviceInfo,
    /// `vulkan`, `metal`, `dx12` or `webgpu`.
    pub api: String,
    pub limits: Limits,
    pub features: Features,
}

/// Limits of an adapter; sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    pub max_storage_buffer_binding_size: u64,
    pub max_buffer_size: u64,
    pub max_compute_workgroup_storage_size: u32,
    pub max_compute_invocations_per_workgroup: u32,
    pub max_compute_workgroups_per_dimension: u32,
    pub max_storage_buffers_per_shader_stage: u32,
    /// Smallest and largest number of invocations in a subgroup.
    pub subgroup_size: (u32, u32),
}

/// Optional features that the kernels use.
#[derive(Clone, Debug)]
pub struct Features {
    pub shader_f16: bool,
    pub subgroups: bool,
    pub timestamp_query: bool,
    /// The shapes that the matrix units support; empty without them.
    pub cooperative_matrices: Vec<CooperativeMatrix>,
}

/// One shape of `C [m, n] += A [m, k] B [k, n]` on the matrix units, with the types of A and B, and of C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CooperativeMatrix {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub inputs: String,
    pub result: String,
}

/// All adapters of the machine; empty if there is no driver.
pub fn devices() -> Vec<Adapter> {
    adapters().iter().enumerate().map(|(i, adapter)| describe(i, adapter)).collect()
}

/// The adapters, enumerated once per process since that loads every driver. In a browser an adapter opens only one device, so
/// each call requests a new one.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    static ADAPTERS: OnceLock<Vec<wgpu::Adapter>> = OnceLock::new();
    if IN_BROWSER { find() } else { ADAPTERS.get_or_init(find).clone() }
}

fn find() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = BACKENDS;
    // No validation layers and no debug information, whatever the build profile.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let found = block_on(wgpu::Instance::new(descriptor).enumerate_adapters(BACKENDS));
    for adapter in &found {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        info!("found {} through {}: driver {} {}", info.name, info.backend, info.driver, info.driver_info);
        debug!(?info, ?limits, ?features, "everything the driver reports about {}", info.name);
    }
    let cards: Vec<Card> = found.iter().map(|adapter| Card::of(&adapter.get_info())).collect();
    let once = found.into_iter().zip(&cards).filter(|(_, card)| !card.is_known_before(&cards));
    once.map(|(adapter, _)| adapter).collect()
}

/// A card as listed by one of the APIs.
#[derive(Clone, Copy)]
struct Card {
    api: wgpu::Backend,
    vendor: u32,
    device: u32,
}

impl Card {
    fn of(info: &wgpu::AdapterInfo) -> Self {
        Card { api: info.backend, vendor: info.vendor, device: info.device }
    }

    /// Whether Vulkan also lists the card: Windows lists each under both APIs, and two cards of a model twice.
    fn is_known_before(&self, cards: &[Card]) -> bool {
        let same = |other: &Card| other.vendor == self.vendor && other.device == self.device;
        self.api == wgpu::Backend::Dx12 && cards.iter().any(|other| other.api == wgpu::Backend::Vulkan && same(other))
    }
}

pub(crate) fn describe(index: usize, adapter: &wgpu::Adapter) -> Adapter {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let driver = [info.backend.to_str(), &info.driver, &info.driver_info];
    let cooperative = features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    let units = matrix_units(adapter);
    Adapter {
        info: DeviceInfo {
            id: format!("wgpu:{index}"),
            // Browsers do not reveal it.
            name: if info.name.is_empty() { "the GPU".into() } else { info.name.clone() },
            kind: kind(info.device_type),
            card: Some(info.device_pci_bus_id.clone()).filter(|card| !card.is_empty()),
            driver: driver.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" "),
            memory: match kind(info.device_type) {
                DeviceKind::SoftwareGpu => memory(adapter).into_iter().chain(sparta_plugin::host_memory()).min(),
                _ => memory(adapter),
            },
            max_buffer: limits.max_buffer_size,
            max_binding: Some(limits.max_storage_buffer_binding_size.min(MAX_BINDING)),
            segments: true,
            in_place: false,
            activations: vec![DType::F32, DType::BF16],
            products: if units.is_empty() { vec![] } else { vec![DType::F16] },
            multiplier: Some(units.first().map_or("f32".into(), MatrixUnits::to_string)),
            rounds_in_attention: false,
            tf32: false,
            sampled_cost: Some(sampled_cost(kind(info.device_type), units.first())),
            own_kernels: vec![OwnKernel::Wgsl],
        },
        api: info.backend.to_str().to_string(),
        limits: Limits {
            max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
            max_buffer_size: limits.max_buffer_size,
            max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
            max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
            subgroup_size: (info.subgroup_min_size, info.subgroup_max_size),
        },
        features: Features {
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            timestamp_query: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            cooperative_matrices: if cooperative { cooperative_matrices(adapter) } else { Vec::new() },
        },
    }
}

fn kind(device_type: wgpu::DeviceType) -> DeviceKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu,
        wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
        wgpu::DeviceType::VirtualGpu => DeviceKind::VirtualGpu,
        wgpu::DeviceType::Cpu => DeviceKind::SoftwareGpu,
        wgpu::DeviceType::Other => DeviceKind::Other,
    }
}

/// What kernels on matrix units need.
pub(crate) const UNITS_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16).union(wgpu::Features::SUBGROUP);

/// The ways in which an adapter may offer products of f16 with sums in f32, most promising first. Drivers do not report
/// the subgroup size of a kernel.
pub(crate) fn matrix_units(adapter: &wgpu::Adapter) -> Vec<MatrixUnits> {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let memory = limits.max_compute_workgroup_storage_size.min(MatrixUnits::MOST_MEMORY);
    if !adapter.features().contains(UNITS_FEATURES) || memory < MatrixUnits::MEMORY {
        return Vec::new();
    }
    let half_to_single = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
    let offered = adapter.cooperative_matrix_properties();
    let offers = |size: u32| {
        offered.iter().any(|c| [c.m_size, c.n_size, c.k_size] == [size; 3] && (c.ab_type, c.cr_type) == half_to_single)
    };
    let vectors = info.backend != wgpu::Backend::Metal;
    let transpose = info.vendor != NVIDIA;
    let subgroups = (3..=7).rev().map(|log| 1 << log);
    let subgroups = subgroups.filter(|size| (info.subgroup_min_size..=info.subgroup_max_size).contains(size));
    let all = [16, 8].into_iter().filter(|&size| offers(size)).flat_map(|size| {
        subgroups.clone().map(move |subgroup| MatrixUnits { size, subgroup, vectors, transpose, memory })
    });
    all.filter(MatrixUnits::fit).collect()
}

/// The [`sparta_kernels::Bounds::unroll`] that suits the adapter's shader compiler.
pub(crate) fn unroll(adapter: &wgpu::Adapter) -> u32 {
    if matches!(adapter.get_info().vendor, NVIDIA | AMD) { 16 } else { 1 }
}

fn cooperative_matrices(adapter: &wgpu::Adapter) -> Vec<CooperativeMatrix> {
    let configurations = adapter.cooperative_matrix_properties();
    configurations
        .iter()
        .map(|c| CooperativeMatrix {
            m: c.m_size,
            n: c.n_size,
            k: c.k_size,
            inputs: format!("{:?}", c.ab_type).to_lowercase(),
            result: format!("{:?}", c.cr_type).to_lowercase(),
        })
        .collect()
}

/// Bytes of the largest device-local heap. Only Vulkan reports it.
#[cfg(not(any(target_vendor = "apple", all(target_family = "wasm", target_os = "unknown"))))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the guard is only read from, and dropped before `adapter`.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = vulkan.shared_instance().raw_instance();
    // SAFETY: the physical device belongs to this instance, and both are alive while the guard is.
    let properties = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
    let heaps = properties.memory_heaps_as_slice().iter();
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(any(target_vendor = "apple", all(target_family = "wasm", target_os = "unknown")))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// The position in [`devices`] of the requested adapter: `wgpu` (the best one), `wgpu:N`, or a part of an adapter's
/// name, ignoring case.
pub(crate) fn select(selector: &str, adapters: &[DeviceInfo]) -> Result<usize, String> {
    if adapters.is_empty() {
        return Err("no adapter found: a Vulkan, Metal or DX12 driver is needed; `--device cpu` needs none".into());
    }
    let listed = || {
        let lines: Vec<String> = adapters.iter().map(|a| format!("{} ({})", a.id, a.name)).collect();
        lines.join(", ")
    };
    let wanted = selector.trim().to_lowercase();
    if wanted == "wgpu" {
        let best = adapters.iter().enumerate().min_by_key(|(_, a)| rank(a.kind));
        return best.map(|(i, _)| i).ok_or_else(|| format!("no adapter among {}", listed()));
    }
    if let Some(number) = wanted.strip_prefix("wgpu:") {
        return match number.parse::<usize>() {
            Ok(i) if i < adapters.len() => Ok(i),
            _ => Err(format!("no adapter `{selector}`; there are: {}", listed())),
        };
    }
    let found = adapters.iter().position(|a| !wanted.is_empty() && a.name.to_lowercase().contains(&wanted));
    found.ok_or_else(|| format!("no adapter has `{selector}` in its name; there are: {}", listed()))
}

/// The order of preference, fastest first.
fn rank(kind: DeviceKind) -> u8 {
    match kind {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        DeviceKind::VirtualGpu => 2,
        DeviceKind::Other => 3,
        DeviceKind::SoftwareGpu | DeviceKind::Cpu => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(i: usize, name: &str, kind: DeviceKind) -> DeviceInfo {
        let id = format!("wgpu:{i}");
        DeviceInfo {
            id,
            name: name.into(),
            kind,
            card: None,
            driver: String::new(),
            memory: None,
            max_buffer: 1 << 28,
            max_binding: None,
            segments: true,
            in_place: false,
            activations: vec![DType::F32],
            products: vec![],
            multiplier: None,
            rounds_in_attention: false,
            tf32: false,
            sampled_cost: None,
            own_kernels: vec![OwnKernel::Wgsl],
        }
    }

    #[test]
    fn a_card_counts_once() {
        let card = |api, device| Card { api, vendor: 0x10de, device };
        let (vulkan, dx12) = (wgpu::Backend::Vulkan, wgpu::Backend::Dx12);
        let cards = [card(vulkan, 1), card(vulkan, 1), card(dx12, 1), card(dx12, 1), card(dx12, 2)];
        assert_eq!(cards.map(|card| card.is_known_before(&cards)), [false, false, true, true, false]);
    }

    #[test]
    fn selectors_find_adapters() {
        let adapters = [
            adapter(0, "llvmpipe (LLVM 15)", DeviceKind::SoftwareGpu),
            adapter(1, "Intel(R) Arc(tm) A770", DeviceKind::DiscreteGpu),
            adapter(2, "AMD Radeon 780M", DeviceKind::IntegratedGpu),
        ];
        assert_eq!(select("wgpu", &adapters), Ok(1));
        assert_eq!(select("wgpu", &adapters[..1]), Ok(0));
        assert_eq!(select("wgpu:2", &adapters), Ok(2));
        assert_eq!(select("radeon", &adapters), Ok(2));
        assert!(select("wgpu:3", &adapters).is_err_and(|e| e.contains("wgpu:1 (Intel(R) Arc(tm) A770)")));
        assert!(select("nvidia", &adapters).is_err_and(|e| e.contains("`nvidia`")));
        assert!(select("wgpu", &[]).is_err_and(|e| e.contains("no adapter found")));
    }
}
