use crate::adapters::{Adapter, UNITS_FEATURES};
use sparta_kernels::{MatrixUnits, sampled_cost};

/// Optional features of a device.
pub use wgpu::Features as DeviceFeatures;

/// How to open a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Bytes of the device's memory, where the driver does not report them or where fewer are to be used.
    pub memory: Option<u64>,
    /// Lowers the adapter's limit on the bytes of a storage binding; at least 256.
    pub max_binding: Option<u64>,
    /// Lowers the adapter's limit on the bytes of a buffer; at least 256.
    pub max_buffer: Option<u64>,
    /// Lowers the adapter's limit on the bytes of workgroup memory; at least WebGPU's default, 16,384.
    pub max_workgroup_memory: Option<u32>,
    /// Features not to use although the adapter has them.
    pub without: DeviceFeatures,
}

impl Options {
    /// Restricts an adapter and its matrix units.
    pub(crate) fn apply(&self, mut adapter: Adapter, mut units: Vec<MatrixUnits>) -> (Adapter, Vec<MatrixUnits>) {
        let limits = &mut adapter.limits;
        limits.max_buffer_size = self.max_buffer.map_or(limits.max_buffer_size, |n| n.min(limits.max_buffer_size));
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let memory = &mut limits.max_compute_workgroup_storage_size;
        *memory = self.max_workgroup_memory.map_or(*memory, |lower| lower.min(*memory));
        let memory = *memory;
        units.iter_mut().for_each(|units| units.memory = units.memory.min(memory));
        let most = adapter.info.max_binding.unwrap_or(u64::MAX).min(limits.max_buffer_size);
        let binding = self.max_binding.map_or(most, |lower| lower.min(most));
        adapter.info.memory = adapter.info.memory.into_iter().chain(self.memory).min();
        (adapter.info.max_buffer, adapter.info.max_binding) = (limits.max_buffer_size, Some(binding));
        adapter.features.timestamp_query &= !self.without.contains(DeviceFeatures::TIMESTAMP_QUERY);
        if self.without.intersects(UNITS_FEATURES) || memory < MatrixUnits::MEMORY {
            units.clear();
            adapter.info.products.clear();
            adapter.info.multiplier = Some("f32".into());
            adapter.info.sampled_cost = Some(sampled_cost(adapter.info.kind, None));
        }
        (adapter, units)
    }
}
