use super::*;

/// A product with a sparse matrix S `[out, in]`, whose elements are `values[i]` at `index[i] = r * in + c`: `y = x S^T`, or
/// with `transposed` `y = x S`, the gradient of the former's input. Each sum is made in f32, in the order of `index`.
///
/// Inputs: `x` f32 or bf16, `[T, in]` (transposed: `[T, out]`); `values` f32 `[n]`; `index` u32 `[n]` ascending; `row_ptr`
/// u32 `[out + 1]`: the elements of row r are `row_ptr[r] .. row_ptr[r + 1]`; `order` u32 `[n]`: the positions in `index`,
/// sorted by column; `column_ptr` u32 `[in + 1]`: those of column c are `order[column_ptr[c]] .. order[column_ptr[c + 1]]`.
/// Output: f32 `[T, out]` (transposed: `[T, in]`). There is no gradient of the values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparseLinear {
    pub transposed: bool,
}

impl Operation for SparseLinear {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 6..=6)?;
        activation(inputs[0], "x")?;
        f32s(inputs[1], "values")?;
        let (rows, width) = matrix(inputs[0], "x")?;
        let n = vector(inputs[1], "values")?;
        for (ty, what) in inputs[2..].iter().zip(["index", "row_ptr", "order", "column_ptr"]) {
            dtype(ty, what, DType::U32)?;
        }
        shape(inputs[2], "index", &[n])?;
        shape(inputs[4], "order", &[n])?;
        let sides = [vector(inputs[3], "row_ptr")?, vector(inputs[5], "column_ptr")?].map(|len| len.checked_sub(1));
        let [Some(out), Some(input)] = sides else { return Err("row_ptr and column_ptr need an element".into()) };
        let (expected, made) = if self.transposed { (out, input) } else { (input, out) };
        if width != expected {
            return Err(format!("x has {width} columns, expected {expected} for a matrix of [{out}, {input}]"));
        }
        Ok(vec![TensorType::f32([rows, made])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dy) = grads[0] else { return Ok(()) };
        if ctx.needs(node.inputs[1]) {
            return Err(GraphError::NotDifferentiable { op: node.op.name(), input: 1 });
        }
        let mut inputs = node.inputs.clone();
        let x = std::mem::replace(&mut inputs[0], dy);
        if !ctx.needs(x) {
            return Ok(());
        }
        let dx = ctx.graph.one(SparseLinear { transposed: !self.transposed }, &inputs)?;
        ctx.add(x, dx)
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[0].shape[0] as u64 * inputs[1].numel() as u64
    }
}
