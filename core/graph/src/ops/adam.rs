use super::*;

/// AdamW with decoupled weight decay (Loshchilov and Hutter 2019; the arithmetic of torch.optim.AdamW), in place:
///
/// ```text
/// g = clip.coef * grad;  lr = lr_factor * step.lr
/// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
/// p = p - lr decay p - lr (m / bias_1) / (sqrt(v / bias_2) + eps)
/// ```
///
/// A negative `clip.coef` changes nothing.
///
/// Inputs: `p`, `m`, `v` f32, overwritten; `grad` f32 of the same shape; `clip` f32 `[2]` of [`ClipCoef`]; `step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Factor of the step's learning rate.
    pub lr_factor: f32,
}

impl Adam {
    /// Where the bias corrections `1 - b1^t` and `1 - b2^t` are in `step`.
    pub const BIAS_1: usize = step::OPTIMIZER;
    pub const BIAS_2: usize = step::OPTIMIZER + 1;
}

impl Operation for Adam {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 6..=6)?;
        optimizer_inputs(inputs[0], inputs[3], inputs[4], inputs[5])?;
        for (ty, what) in inputs[1..3].iter().zip(["m", "v"]) {
            f32s(ty, what)?;
            shape(ty, what, &inputs[0].shape)?;
        }
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0, 1, 2]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        15 * inputs[0].numel() as u64
    }
}
