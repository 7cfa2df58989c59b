use super::*;

/// A tensor of one value. No inputs. Output: f32 of `shape`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fill {
    pub value: f32,
    pub shape: Vec<usize>,
}

impl Operation for Fill {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 0..=0)?;
        Ok(vec![TensorType::f32(self.shape.clone())])
    }
}
