use super::*;

/// How [`SampledGrad`] is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// The backend chooses by density and shape.
    Auto,
    /// One dot product per chosen element.
    Sampled,
    /// Matrix-product tiles, of which only the chosen elements are kept.
    Tiled,
}

/// The chosen elements of the weight gradient of a linear layer: `g[i] = scale * sum over t of dy[t, r] x[t, c]` where
/// `index[i] = r * in + c`. The dense gradient is never stored.
///
/// Inputs: `dy [T, out]` and `x [T, in]`, each f32 or bf16, `index` u32 `[n]` ascending, `row_ptr` u32 `[out + 1]`: the chosen
/// elements of row r are `row_ptr[r] .. row_ptr[r + 1]`. Output: f32 `[n]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledGrad {
    pub scale: f32,
    pub sampling: Sampling,
}

impl Operation for SampledGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 4..=4)?;
        activation(inputs[0], "dy")?;
        activation(inputs[1], "x")?;
        let (rows, out) = matrix(inputs[0], "dy")?;
        let (x_rows, _) = matrix(inputs[1], "x")?;
        if rows != x_rows {
            return Err(format!("dy has {rows} rows, x {x_rows}"));
        }
        dtype(inputs[2], "index", DType::U32)?;
        let n = vector(inputs[2], "index")?;
        dtype(inputs[3], "row_ptr", DType::U32)?;
        shape(inputs[3], "row_ptr", &[out + 1])?;
        Ok(vec![TensorType::f32([n])])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[0].shape[0] as u64 * inputs[2].numel() as u64
    }
}
