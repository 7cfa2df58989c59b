use super::*;

/// Writes the trained elements of a weight: `w[index[i]] = round(base[i] + delta[i])`, rounded to the type of `w`
/// (nearest, ties to even). The base is never lost. With `remainder`, also writes what the rounding lost of each:
/// `remainder[i] = (base[i] + delta[i]) - w[index[i]]`.
///
/// Inputs: `w` of any float type, overwritten; `index` u32 `[n]` ascending; `base [n]` of any float type; `delta`
/// f32 `[n]`; then, if `remainder`, `remainder` f32 `[n]`, overwritten.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scatter {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remainder: bool,
}

impl Operation for Scatter {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 4 + usize::from(self.remainder);
        count(inputs, expected..=expected)?;
        floats(inputs[0], "w")?;
        dtype(inputs[1], "index", DType::U32)?;
        let n = vector(inputs[1], "index")?;
        floats(inputs[2], "base")?;
        f32s(inputs[3], "delta")?;
        for (ty, what) in inputs[2..].iter().zip(["base", "delta", "remainder"]) {
            shape(ty, what, &[n])?;
        }
        match inputs.get(4) {
            Some(remainder) => f32s(remainder, "remainder").map(|()| vec![]),
            None => Ok(vec![]),
        }
    }

    fn writes(&self) -> &'static [usize] {
        if self.remainder { &[0, 4] } else { &[0] }
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        inputs[1].numel() as u64
    }
}
