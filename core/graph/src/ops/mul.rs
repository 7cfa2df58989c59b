use super::*;

/// `c = a * b`, elementwise; `b` may be a vector `[n]` that every row of `a [T, n]` is multiplied by, or a column `[T, 1]`
/// whose numbers multiply the rows.
///
/// Inputs: `a` f32 or bf16; `b` f32 or bf16, as a vector of any float type. Output: as `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mul {}

impl Operation for Mul {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        Broadcasting::of(inputs[0], inputs[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dc) = grads[0] else { return Ok(()) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        if ctx.needs(a) {
            let da = ctx.graph.one(Mul {}, &[dc, b])?;
            ctx.add(a, da)?;
        }
        if ctx.needs(b) {
            let db = ctx.graph.one(Mul {}, &[dc, a])?;
            add_broadcast(ctx, b, db)?;
        }
        Ok(())
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
