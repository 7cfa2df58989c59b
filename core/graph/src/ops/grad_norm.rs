use super::*;

/// Partial sums per tensor of [`SumOfSquares`]: the order of additions does not depend on the device.
pub const PARTIALS: usize = 64;

/// Partial sums of squares of a gradient, into row `slot` of `norms`.
///
/// Inputs: `norms` f32 `[tensors, PARTIALS]`, row `slot` overwritten; `x` f32 or bf16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SumOfSquares {
    pub slot: usize,
}

impl Operation for SumOfSquares {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        f32s(inputs[0], "norms")?;
        let (tensors, _) = matrix(inputs[0], "norms")?;
        shape(inputs[0], "norms", &[tensors, PARTIALS])?;
        if self.slot >= tensors {
            return Err(format!("slot {} of {tensors}", self.slot));
        }
        activation(inputs[1], "x")?;
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[1].numel() as u64
    }
}

/// The global gradient norm and the clip factor `min(1, max_norm / (norm + 1e-6))`, as torch's `clip_grad_norm_`;
/// factor 1 without a `max_norm`; factor -1 if the norm is not finite.
///
/// Input: `norms` f32 `[tensors, PARTIALS]`. Output: f32 `[2]`, norm and factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipCoef {
    pub max_norm: Option<f32>,
}

impl Operation for ClipCoef {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        f32s(inputs[0], "norms")?;
        let (tensors, _) = matrix(inputs[0], "norms")?;
        shape(inputs[0], "norms", &[tensors, PARTIALS])?;
        Ok(vec![TensorType::f32([2])])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        inputs[0].numel() as u64
    }
}
