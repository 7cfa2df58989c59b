use super::*;

/// `c = a + b`, elementwise; `b` may be a vector `[n]` (a bias) that is added to every row of `a [T, n]`, or a column
/// `[T, 1]`.
///
/// Inputs: `a` f32 or bf16; `b` f32 or bf16, as a vector of any float type. Output: as `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Add {}

impl Operation for Add {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        Broadcasting::of(inputs[0], inputs[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dc) = grads[0] else { return Ok(()) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        ctx.add_if_needed(a, dc)?;
        if ctx.needs(b) { add_broadcast(ctx, b, dc) } else { Ok(()) }
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}
