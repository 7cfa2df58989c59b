use super::*;

/// `y[i] = x[index[i]]` on the flattened `x`. Inputs: `x` f32 or bf16, `index` u32 `[n]` ascending. Output: `[n]` of the
/// type of `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gather {}

impl Operation for Gather {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "x")?;
        dtype(inputs[1], "index", DType::U32)?;
        Ok(vec![TensorType::new(inputs[0].dtype, [vector(inputs[1], "index")?])])
    }
}
