use super::*;

/// `y[i] = x[index[i]]` on the flattened `x`. Inputs: `x` f32, `index` u32 `[n]` ascending. Output: f32 `[n]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gather {}

impl Operation for Gather {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        f32s(inputs[0], "x")?;
        dtype(inputs[1], "index", DType::U32)?;
        Ok(vec![TensorType::f32([vector(inputs[1], "index")?])])
    }
}
