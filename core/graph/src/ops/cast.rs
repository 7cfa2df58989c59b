use super::*;

/// The same numbers in another float type, rounded to nearest, ties to even.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cast {
    pub to: DType,
}

impl Operation for Cast {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        floats(inputs[0], "x")?;
        if !self.to.is_float() {
            return Err(format!("cannot cast to {}", self.to));
        }
        Ok(vec![TensorType::new(self.to, inputs[0].shape.clone())])
    }
}
