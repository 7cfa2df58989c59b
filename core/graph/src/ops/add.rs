use super::*;

/// `c = a + b`, elementwise; a vector `b [n]` (a bias) is added to every row of `a [T, n]`.
///
/// Inputs: `a` f32 or bf16; `b` f32 or bf16 of the same shape, or a vector of any float type. Output: as `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Add {}

impl Operation for Add {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "a")?;
        match (&inputs[0].shape[..], &inputs[1].shape[..]) {
            ([_, columns], [n]) if columns == n => floats(inputs[1], "b")?,
            (a, _) => {
                activation(inputs[1], "b")?;
                shape(inputs[1], "b", a)?;
            }
        }
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dc) = grads[0] else { return Ok(()) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        ctx.add_if_needed(a, dc)?;
        if ctx.needs(b) && ctx.graph.shape(a)? != ctx.graph.shape(b)? {
            let db = ctx.graph.one(ColumnSum {}, &[dc])?;
            return ctx.add(b, db);
        }
        ctx.add_if_needed(b, dc)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}
