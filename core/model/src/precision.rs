use serde::{Deserialize, Serialize};
use sparta_graph::DType;
use std::fmt;
use std::str::FromStr;

/// The float types of a model's graph, chosen when it is built.
///
/// Whatever they are, these stay f32: the residual stream and its gradient, trained values and the optimizer's state,
/// statistics of norms, log-sum-exps, logits, losses and the rope table. Frozen weights keep the type that they have on
/// disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Precision {
    /// Values inside a block, and their gradients.
    pub activations: DType,
    /// What products read of trained tensors: the tensors themselves, or copies rounded to this type.
    pub products: DType,
}

impl Precision {
    pub const F32: Precision = Precision { activations: DType::F32, products: DType::F32 };
    pub const BF16: Precision = Precision { activations: DType::BF16, products: DType::BF16 };
}

impl Default for Precision {
    fn default() -> Self {
        Precision::F32
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::BF16),
            _ => Err(format!("expected f32 or bf16, got `{name}`")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.activations == self.products {
            true => self.activations.fmt(f),
            false => write!(f, "{} with products of {}", self.activations, self.products),
        }
    }
}
