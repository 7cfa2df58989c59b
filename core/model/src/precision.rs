use serde::{Deserialize, Serialize};
use sparta_graph::DType;
use std::fmt;
use std::str::FromStr;

/// The float types of a model's graph, chosen when it is built.
///
/// Always f32: the residual stream and its gradient, trained values and the optimizer's state,
/// statistics of norms, log-sum-exps, logits, losses and the rope table. Frozen weights keep their type on
/// disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Precision {
    /// The type of values inside a block and of their gradients.
    pub activations: DType,
    /// The type in which products read trained tensors: f32 for the tensors themselves, or that of rounded copies.
    pub products: DType,
    /// Whether products may round f32 factors to TF32 ([`sparta_graph::Plan::tf32`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
}

impl Precision {
    pub const F32: Precision = Precision { activations: DType::F32, products: DType::F32, tf32: false };
    pub const TF32: Precision = Precision { tf32: true, ..Precision::F32 };
    pub const BF16: Precision = Precision { activations: DType::BF16, products: DType::BF16, tf32: false };
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
            "tf32" => Ok(Precision::TF32),
            _ => Err(format!("expected f32, bf16 or tf32, got `{name}`")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.activations == self.products {
            true if self.tf32 => f.write_str("tf32"),
            true => self.activations.fmt(f),
            false => write!(f, "{} with products of {}", self.activations, self.products),
        }
    }
}
