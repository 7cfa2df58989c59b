use super::*;

/// `y = factor * x`, elementwise. Input: `x` f32 or bf16. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    pub factor: f32,
}

impl Operation for Scale {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let dx = ctx.graph.one(self.clone(), &[dy])?;
        ctx.add(node.inputs[0], dx)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
