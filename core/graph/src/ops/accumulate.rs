use super::*;

/// `acc += x`, in place: gradients over micro-batches. Inputs: `acc` f32, overwritten; `x` f32 of the same shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accumulate {}

impl Operation for Accumulate {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        f32s(inputs[0], "acc")?;
        f32s(inputs[1], "x")?;
        shape(inputs[1], "x", &inputs[0].shape)?;
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        inputs[0].numel() as u64
    }
}
