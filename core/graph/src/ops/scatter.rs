use super::*;

/// Writes the trained elements of a weight: `w[index[i]] = round(base[i] + delta[i])`, rounded to the type of `w`
/// (nearest, ties to even). The base is never lost.
///
/// Inputs: `w` of any float type, overwritten; `index` u32 `[n]` ascending; `base [n]` of any float type; `delta`
/// f32 `[n]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scatter {}

impl Operation for Scatter {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 4..=4)?;
        floats(inputs[0], "w")?;
        dtype(inputs[1], "index", DType::U32)?;
        let n = vector(inputs[1], "index")?;
        floats(inputs[2], "base")?;
        f32s(inputs[3], "delta")?;
        for (ty, what) in inputs[2..].iter().zip(["base", "delta"]) {
            shape(ty, what, &[n])?;
        }
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        inputs[1].numel() as u64
    }
}
