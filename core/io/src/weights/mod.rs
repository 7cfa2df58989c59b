//! Tensors on disk: model directories in the Hugging Face layout and single safetensors files, memory mapped.

mod directory;
mod file;
mod snapshot;
mod write;

pub use directory::Weights;
pub use file::{RawView, TensorFile};
pub use safetensors::Dtype;
pub use snapshot::{INDEX, read_snapshot, save_snapshot};
pub use write::{OutTensor, TensorSpec, atomic_write, save, save_with};

use sparta_graph::DType;

/// The storage type as safetensors names it.
pub fn safetensors_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::U32 => Dtype::U32,
    }
}
