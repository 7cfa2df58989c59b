use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a tensor's elements. Arithmetic inside an op is f32 whatever the types of its tensors (f64 in the
/// reference backend), and each result is rounded once, to nearest with ties to even, when it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    BF16,
    F16,
    U32,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }

    pub fn is_float(self) -> bool {
        self != DType::U32
    }

    /// Whether activations can have this type: f32 and bf16. f16 is for weights only: its range is too small for
    /// gradients.
    pub fn is_activation(self) -> bool {
        matches!(self, DType::F32 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::U32 => "u32",
        })
    }
}
