use super::*;

/// [`Adam`] with moments stored as bf16, which halves its state. The new moments enter the update in f32 and are then
/// rounded stochastically: rounding to nearest would lose every change below 1/256 of a moment, which with a `beta2` of
/// 0.999 is most of them.
///
/// A finite f32 `x` becomes the upper half of `bits(x) + r`, where `r` are 16 random bits; a value that is not finite
/// is truncated and stays not finite. Element `i` draws the word `w = philox4x32_10([i / 4, salt, 1, 0], rng[0..2])[i %
/// 4]`: `m` takes its lower half as `r`, `v` its upper half, so that every backend rounds alike. (Counters of dropout
/// have a 0 in their third word.)
///
/// Inputs: `p` f32, `m` and `v` bf16, overwritten; `grad` f32, all of one shape; `clip` f32 `[2]` of [`ClipCoef`];
/// `step`; `rng`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamBf16 {
    pub adam: Adam,
    /// Distinguishes the calls of a step.
    pub salt: u32,
}

impl Operation for AdamBf16 {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 7..=7)?;
        optimizer_inputs(inputs[0], inputs[3], inputs[4], inputs[5])?;
        for (ty, what) in inputs[1..3].iter().zip(["m", "v"]) {
            dtype(ty, what, DType::BF16)?;
            shape(ty, what, &inputs[0].shape)?;
        }
        rng_input(inputs[6])?;
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0, 1, 2]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        17 * inputs[0].numel() as u64
    }
}
