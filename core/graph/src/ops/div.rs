use super::*;

/// `c = a / b`, elementwise; `b` may be a vector or a column as in [`Mul`].
///
/// Inputs: `a` f32 or bf16; `b` f32 or bf16, as a vector of any float type. Output: as `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Div {}

impl Operation for Div {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        Broadcasting::of(inputs[0], inputs[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dc) = grads[0] else { return Ok(()) };
        let (a, b, c) = (node.inputs[0], node.inputs[1], node.outputs[0]);
        if !ctx.needs(a) && !ctx.needs(b) {
            return Ok(());
        }
        let da = ctx.graph.one(Div {}, &[dc, b])?;
        ctx.add_if_needed(a, da)?;
        if ctx.needs(b) {
            let product = ctx.graph.one(Mul {}, &[da, c])?;
            let db = ctx.graph.one(Scale { factor: -1.0 }, &[product])?;
            add_broadcast(ctx, b, db)?;
        }
        Ok(())
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
