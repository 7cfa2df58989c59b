use super::*;

/// Rotary position embedding of the first r elements of each head, on half-split pairs (i, i + r/2), as in transformers'
/// `apply_rotary_pos_emb`; the others are copied. The position of a row is its distance from the start of its segment.
///
/// Inputs: `x` f32 or bf16 `[T, heads * head_dim]`, `spans` u32 `[T, 2]`, `table` f32 `[P, r]` with the cosines of a
/// position in the first half of its row and the sines in the second. Positions must be below P.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    pub head_dim: usize,
    /// Rotate backwards: the gradient of the rotation.
    pub inverse: bool,
    /// r, even; `None`: the whole head.
    pub rotated: Option<usize>,
}

impl Rope {
    /// Elements of each head that are rotated.
    pub fn width(&self) -> usize {
        self.rotated.unwrap_or(self.head_dim)
    }
}

impl Operation for Rope {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        activation(inputs[0], "x")?;
        let (rows, columns) = matrix(inputs[0], "x")?;
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || !columns.is_multiple_of(self.head_dim) {
            return Err(format!("heads have {} elements, expected an even divisor of {columns}", self.head_dim));
        }
        if !(1..=self.head_dim / 2).contains(&(self.width() / 2)) || !self.width().is_multiple_of(2) {
            return Err(format!("{} of a head's {} elements cannot be rotated in pairs", self.width(), self.head_dim));
        }
        spans(inputs[1], rows)?;
        f32s(inputs[2], "table")?;
        let (positions, _) = matrix(inputs[2], "table")?;
        shape(inputs[2], "table", &[positions, self.width()])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let op = Rope { inverse: !self.inverse, ..self.clone() };
        let dx = ctx.graph.one(op, &[dy, node.inputs[1], node.inputs[2]])?;
        ctx.add(node.inputs[0], dx)
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * inputs[0].numel() as u64
    }
}
