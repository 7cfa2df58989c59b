use super::*;

/// `y[i] = x[rows[i]]`. Inputs: `x` f32 or bf16 `[T, d]`, `rows` u32 `[N]`, all different. Output: `[N, d]` of
/// the type of `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectRows {}

impl Operation for SelectRows {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "x")?;
        let (_, columns) = matrix(inputs[0], "x")?;
        dtype(inputs[1], "rows", DType::U32)?;
        let rows = vector(inputs[1], "rows")?;
        Ok(vec![TensorType::new(inputs[0].dtype, [rows, columns])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let total = ctx.graph.shape(node.inputs[0])?[0];
        let dx = ctx.graph.one(ScatterRows { rows: total }, &[dy, node.inputs[1]])?;
        ctx.add(node.inputs[0], dx)
    }
}

/// Rows at their places, zeros elsewhere: `y[rows[i]] = x[i]`.
///
/// Inputs: `x` f32 or bf16 `[N, d]`, `rows` u32 `[N]`, all different. Output: `[rows, d]` of the type of `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScatterRows {
    pub rows: usize,
}

impl Operation for ScatterRows {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "x")?;
        let (n, columns) = matrix(inputs[0], "x")?;
        dtype(inputs[1], "rows", DType::U32)?;
        shape(inputs[1], "rows", &[n])?;
        Ok(vec![TensorType::new(inputs[0].dtype, [self.rows, columns])])
    }
}
