//! Tensors on disk: model directories in the Hugging Face layout and single safetensors files, memory mapped.

mod convert;
mod directory;
mod file;
mod write;

pub use convert::{first_not_finite, from_f32, to_f32};
pub use directory::{TensorView, Weights};
pub use file::{RawView, TensorFile};
pub use safetensors::Dtype;
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
