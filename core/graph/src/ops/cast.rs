use super::*;

/// Casts to another float type, rounding to nearest, ties to even. The gradient passes unchanged, in the type of the
/// input.
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

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dy) = grads[0] else { return Ok(()) };
        ctx.add_if_needed(node.inputs[0], dy)
    }
}
