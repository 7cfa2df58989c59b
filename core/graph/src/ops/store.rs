use super::*;

/// Copies a tensor into one that outlives the plan, such as a result for the host or the rounded copy of a trained
/// weight. Floats are rounded to the type of the destination, to nearest, ties to even.
///
/// Inputs: `dst`, overwritten; `src` of the same shape, u32 if `dst` is, else of any float type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {}

impl Operation for Store {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        match inputs[0].dtype {
            DType::U32 => dtype(inputs[1], "src", DType::U32)?,
            _ => floats(inputs[1], "src")?,
        }
        shape(inputs[1], "src", &inputs[0].shape)?;
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0]
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }
}
