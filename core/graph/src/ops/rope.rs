use super::*;

/// Rotary position embedding on half-split pairs (i, i + head_dim/2), as in transformers' `apply_rotary_pos_emb`. The
/// position of a row is its distance from the start of its segment.
///
/// Inputs: `x` f32 or bf16 `[T, heads * head_dim]`, `spans` u32 `[T, 2]`, `table` f32 `[P, head_dim]` with the cosines of a
/// position in the first half of its row and the sines in the second. Positions must be below P.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    pub head_dim: usize,
    /// Rotate backwards: the gradient of the rotation.
    pub inverse: bool,
}

impl Operation for Rope {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        activation(inputs[0], "x")?;
        let (rows, columns) = matrix(inputs[0], "x")?;
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || !columns.is_multiple_of(self.head_dim) {
            return Err(format!("rows of {columns} elements are not made of even heads of {}", self.head_dim));
        }
        spans(inputs[1], rows)?;
        f32s(inputs[2], "table")?;
        let (positions, _) = matrix(inputs[2], "table")?;
        shape(inputs[2], "table", &[positions, self.head_dim])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let op = Rope { head_dim: self.head_dim, inverse: !self.inverse };
        let dx = ctx.graph.one(op, &[dy, node.inputs[1], node.inputs[2]])?;
        ctx.add(node.inputs[0], dx)
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * inputs[0].numel() as u64
    }
}
