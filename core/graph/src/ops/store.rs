use super::*;

/// Copies a result to where the host can read it. Inputs: `dst`, overwritten; `src` of the same type and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {}

impl Operation for Store {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        dtype(inputs[1], "src", inputs[0].dtype)?;
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
