use super::*;

/// Partial sums per tensor of [`SumOfSquares`]: the order of additions does not depend on the device.
pub const PARTIALS: usize = 64;

/// Elements per partial sum of a tensor with `len` elements: whole vectors of 8, so that devices with and without
/// vectors add the same elements.
pub const fn elements_per_partial(len: usize) -> usize {
    len.div_ceil(8 * PARTIALS) * 8
}

/// Partial sums of squares of tensors, a row of `norms` for each.
///
/// Inputs: `norms` f32 `[tensors, PARTIALS]`, rows from `slot` on overwritten; `x` f32 or bf16; optionally
/// `parts` u32 `[count, 2]`: the begin and the length of each tensor in the flattened `x`. Without it `x` is one
/// tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SumOfSquares {
    pub slot: usize,
}

impl Operation for SumOfSquares {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=3)?;
        let tensors = norms(inputs[0])?;
        activation(inputs[1], "x")?;
        let mut parts = 1;
        if let Some(ty) = inputs.get(2) {
            dtype(ty, "parts", DType::U32)?;
            (parts, _) = matrix(ty, "parts")?;
            shape(ty, "parts", &[parts, 2])?;
        }
        if self.slot + parts > tensors {
            return Err(format!("{parts} tensors from slot {} on, but norms has {tensors} rows", self.slot));
        }
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[1].numel() as u64
    }
}

/// The global gradient norm, and the factor by which optimizers multiply gradients: `min(1, max_norm / (norm + 1e-6))`
/// as in torch's `clip_grad_norm_`, 1 without a `max_norm`.
///
/// If the norm or the loss is not finite, the factor is -1, which suppresses the update, and `latch` is set to 1; until
/// the host clears it, the factor stays -1. So a host that reads results a step late still finds the state from before
/// the bad step.
///
/// Inputs: `norms` f32 `[tensors, PARTIALS]`; `loss` f32 `[1]`; `latch` f32 `[1]`, overwritten. Output: f32 `[2]`, norm
/// and factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipCoef {
    pub max_norm: Option<f32>,
}

impl Operation for ClipCoef {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        norms(inputs[0])?;
        for (ty, what) in inputs[1..].iter().zip(["loss", "latch"]) {
            f32s(ty, what)?;
            shape(ty, what, &[1])?;
        }
        Ok(vec![TensorType::f32([2])])
    }

    fn writes(&self) -> &'static [usize] {
        &[2]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        inputs[0].numel() as u64
    }
}

/// The number of tensors that `norms` has rows for.
fn norms(ty: &TensorType) -> Result<usize, String> {
    f32s(ty, "norms")?;
    let (tensors, _) = matrix(ty, "norms")?;
    shape(ty, "norms", &[tensors, PARTIALS])?;
    Ok(tensors)
}
