//! The CUDA backend. A plan's calls are lowered to the kernels of `sparta-kernels`, whose WGSL is translated to CUDA C++
//! (`writer`), and to products of the vendor's library. What runs them is a [`Machine`]: a GPU, or in tests a CPU.

mod backend;
mod compile;
mod gpu;
mod libraries;
mod machine;
mod overrides;
mod pieces;
mod plan;
mod plugin;
mod products;
mod writer;

pub use backend::CudaBackend;
pub use compile::{Cache, Compiler};
pub use libraries::Search;
pub use machine::{
    Arguments, Factors, Failure, GraphId, KernelId, KernelText, MAX_BINDING, Machine, Matrix, Product, ProductId,
    Reading, Threads,
};
pub use overrides::written;
pub use plugin::{Plugin, entry};
pub use writer::translate;
