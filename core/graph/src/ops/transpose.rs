use super::*;

/// `y[j, i] = x[i, j]`. Input: f32 or bf16 `[m, n]`. Output: `[n, m]` of that type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transpose {}

impl Operation for Transpose {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        let (rows, columns) = matrix(inputs[0], "x")?;
        Ok(vec![TensorType::new(inputs[0].dtype, [columns, rows])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let dx = ctx.graph.one(Transpose {}, &[dy])?;
        ctx.add(node.inputs[0], dx)
    }
}
