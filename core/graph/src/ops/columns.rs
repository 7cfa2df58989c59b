use super::*;

/// Cuts a matrix into blocks of columns: the queries, keys and values of a layer that computes them in one product.
///
/// Input: `x` f32 or bf16 `[T, n]`. Outputs: `[T, w]` of that type for each w of `widths`, which are even and add up to n.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitColumns {
    pub widths: Vec<usize>,
}

impl Operation for SplitColumns {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        let (rows, columns) = matrix(inputs[0], "x")?;
        even(&self.widths)?;
        if self.widths.iter().sum::<usize>() != columns {
            return Err(format!("blocks of {:?} columns do not make up {columns}", self.widths));
        }
        Ok(self.widths.iter().map(|&width| TensorType::new(inputs[0].dtype, [rows, width])).collect())
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let x = node.inputs[0];
        if !ctx.needs(x) || grads.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut blocks = Vec::new();
        for (grad, &output) in grads.iter().zip(&node.outputs) {
            blocks.push(match grad {
                Some(grad) => *grad,
                None => zeros(ctx, output)?,
            });
        }
        let dx = ctx.graph.one(JoinColumns {}, &blocks)?;
        ctx.add(x, dx)
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }
}

/// Zeros of the type of another value.
fn zeros(ctx: &mut GradCtx, like: Value) -> Result<Value, GraphError> {
    let ty = ctx.graph.ty(like)?.clone();
    let zeros = ctx.graph.one(Fill { value: 0.0, shape: ty.shape }, &[])?;
    if ty.dtype == DType::F32 { Ok(zeros) } else { ctx.graph.one(Cast { to: ty.dtype }, &[zeros]) }
}

/// Puts matrices beside each other: the gradient of [`SplitColumns`].
///
/// Inputs: f32 or bf16 `[T, w]`, all of one type, with even w. Output: `[T, n]` of that type, n the sum of their widths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinColumns {}

impl Operation for JoinColumns {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=usize::MAX)?;
        activation(inputs[0], "an input")?;
        let (rows, _) = matrix(inputs[0], "an input")?;
        let width = |ty: &&TensorType| {
            let (_, width) = matrix(ty, "an input")?;
            like(ty, "an input", &TensorType::new(inputs[0].dtype, [rows, width]))?;
            Ok(width)
        };
        let widths = inputs.iter().map(width).collect::<Result<Vec<_>, String>>()?;
        even(&widths)?;
        Ok(vec![TensorType::new(inputs[0].dtype, [rows, widths.iter().sum()])])
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }
}

/// Two 16-bit elements share a word, so blocks of columns begin and end between pairs.
fn even(widths: &[usize]) -> Result<(), String> {
    match widths.iter().find(|&&width| width == 0 || !width.is_multiple_of(2)) {
        Some(width) => Err(format!("a block of {width} columns, expected an even number")),
        None => Ok(()),
    }
}
