use super::*;

/// Overwrites rows of a tensor that outlives the plan: `dst[rows[i]] = src[i]`, rounded to the type of `dst`. A row
/// that is [`IGNORED`] is not written.
///
/// Inputs: `dst [C, d]` f32 or bf16, in bf16 with an even d; `src [T, d]` f32 or bf16; `rows` u32 `[T]`, all different
/// except for those that are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreRows {}

impl Operation for StoreRows {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        activation(inputs[0], "dst")?;
        activation(inputs[1], "src")?;
        let (_, width) = matrix(inputs[0], "dst")?;
        let (rows, _) = matrix(inputs[1], "src")?;
        shape(inputs[1], "src", &[rows, width])?;
        // Rows that share a word could not be written in parallel.
        if inputs[0].dtype == DType::BF16 && !width.is_multiple_of(2) {
            return Err(format!("rows of {width} elements of bf16 do not end at a word boundary"));
        }
        dtype(inputs[2], "rows", DType::U32)?;
        shape(inputs[2], "rows", &[rows])?;
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        &[0]
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }
}
