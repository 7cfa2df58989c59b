use super::*;

/// `c = a + b`, elementwise. Inputs and output: f32 of one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Add {}

impl Operation for Add {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        f32s(inputs[0], "a")?;
        f32s(inputs[1], "b")?;
        shape(inputs[1], "b", &inputs[0].shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dc) = grads[0] else { return Ok(()) };
        ctx.add_if_needed(node.inputs[0], dc)?;
        ctx.add_if_needed(node.inputs[1], dc)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}
