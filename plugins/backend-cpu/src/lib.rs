//! The CPU backend: every op of the graph on all cores, generic over the number type. In f64 it is the reference that
//! the other backends are compared with.

mod backend;
mod bind;
mod device;
mod draw;
mod elementwise;
mod floats;
mod kernels;
mod memory;
mod parallel;
mod plugin;
mod product;
mod real;
mod segments;
mod simd;
#[cfg(test)]
mod testing;

pub use backend::{CpuBackend, DEVICE};
pub use plugin::{Plugin, entry};
pub use real::Real;

/// The backend for use: f32.
pub type Cpu = CpuBackend<f32>;

/// The reference: f32 tensors are held and computed in f64.
pub type Reference = CpuBackend<f64>;
