use super::*;

/// Repeats a vector `[n]` as every row, or a column `[T, 1]` as every column, of a matrix.
///
/// Input: f32 or bf16. Output: `[T, n]` of that type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broadcast {
    pub shape: [usize; 2],
}

impl Operation for Broadcast {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        let output = TensorType::new(inputs[0].dtype, self.shape);
        match Broadcasting::of(&output, inputs[0])? {
            Broadcasting::None => Err(format!("x has the shape {:?} already", self.shape)),
            Broadcasting::Row | Broadcasting::Column => Ok(vec![output]),
        }
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        add_broadcast(ctx, node.inputs[0], dy)
    }
}

/// How the second operand of an elementwise op is repeated to match a matrix `[T, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcasting {
    /// Both have one shape.
    None,
    /// A vector `[n]`, for every row.
    Row,
    /// A column `[T, 1]`, for every column.
    Column,
}

impl Broadcasting {
    /// Errors: types or shapes that do not match.
    pub fn of(a: &TensorType, b: &TensorType) -> Result<Broadcasting, String> {
        activation(a, "a")?;
        let kind = match (&a.shape[..], &b.shape[..]) {
            ([_, columns], [n]) if columns == n => return floats(b, "b").map(|()| Broadcasting::Row),
            (a, b) if a == b => Broadcasting::None,
            ([rows, _], [n, 1]) if rows == n => Broadcasting::Column,
            (a, b) => return Err(format!("b must have the shape {a:?}, that of its rows or of a column, got {b:?}")),
        };
        activation(b, "b").map(|()| kind)
    }
}

/// Adds a gradient of the shape of the result to the second operand of an op that repeated it.
pub(super) fn add_broadcast(ctx: &mut GradCtx, b: Value, grad: Value) -> Result<(), GraphError> {
    let (whole, own) = (ctx.graph.ty(grad)?.clone(), ctx.graph.ty(b)?.clone());
    let sum = match (&whole.shape[..], &own.shape[..]) {
        (whole, own) if whole == own => grad,
        (_, [_]) => ctx.graph.one(ColumnSum {}, &[grad])?,
        _ => ctx.graph.one(RowSum {}, &[grad])?,
    };
    ctx.add(b, sum)
}

/// The rule of sums: every element of x gets the gradient of its sum.
pub(super) fn broadcast_grad(ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
    let (Some(dy), &[x]) = (grads[0], &node.inputs[..]) else { return Ok(()) };
    if !ctx.needs(x) {
        return Ok(());
    }
    let &[rows, columns] = ctx.graph.shape(x)? else { return Ok(()) };
    let dx = match ctx.graph.shape(dy)? == [rows, columns] {
        true => dy,
        false => ctx.graph.one(Broadcast { shape: [rows, columns] }, &[dy])?,
    };
    ctx.add(x, dx)
}
