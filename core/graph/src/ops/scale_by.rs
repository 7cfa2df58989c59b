use super::*;

/// `y = s[0] * x`, elementwise. Inputs: `x` f32 or bf16, `s` f32 `[1]`. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleBy {}

impl Operation for ScaleBy {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "x")?;
        f32s(inputs[1], "s")?;
        shape(inputs[1], "s", &[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let [x, s] = node.inputs[..] else { return Ok(()) };
        let Some(dy) = grads[0] else { return Ok(()) };
        if ctx.needs(s) {
            return Err(GraphError::NotDifferentiable { op: "scale_by", input: 1 });
        }
        let dx = ctx.graph.one(ScaleBy {}, &[dy, s])?;
        ctx.add_if_needed(x, dx)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
