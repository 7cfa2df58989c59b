use super::*;

/// The identity, which passes no gradient. Input: f32 or bf16. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detach {}

impl Operation for Detach {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        Ok(vec![inputs[0].clone()])
    }
}
