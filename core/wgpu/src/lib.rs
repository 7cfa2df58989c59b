//! The wgpu backend: WGSL kernels on Vulkan, Metal, DX12 and in browsers, at WebGPU's default limits.
//!
//! A call of a plan is lowered to dispatches (`sparta-kernels`); pipelines are made once per kernel (`pipelines`), bind
//! groups once per plan (`prepared`). Where kernels differ in speed alone, `tune` measures them.

mod adapters;
mod backend;
mod cache;
mod options;
mod pace;
mod pipelines;
mod prepared;
mod profile;
mod report;
mod transfer;
mod tune;
mod units;
mod wait;

#[cfg(test)]
mod tests;

pub use adapters::{Adapter, CooperativeMatrix, Features, Limits, devices};
pub use backend::WgpuBackend;
pub use options::{DeviceFeatures, Options};
