use super::*;

/// A block of a matrix: its rows `rows[0] .. rows[1]` and columns `columns[0] .. columns[1]`.
///
/// Input: f32 or bf16 `[T, n]`. Output: of that type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    pub rows: [usize; 2],
    pub columns: [usize; 2],
}

impl Operation for Slice {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        let (rows, columns) = matrix(inputs[0], "x")?;
        let block = [block(self.rows, rows, "rows")?, block(self.columns, columns, "columns")?];
        Ok(vec![TensorType::new(inputs[0].dtype, block)])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let &[rows, columns] = ctx.graph.shape(node.inputs[0])? else { return Ok(()) };
        let at = [self.rows[0], self.columns[0]];
        let dx = ctx.graph.one(Unslice { shape: [rows, columns], at }, &[dy])?;
        ctx.add(node.inputs[0], dx)
    }
}

/// A matrix of zeros with a block in it, whose first element lies at row `at[0]` and column `at[1]`.
///
/// Input: the block, f32 or bf16 `[m, n]`. Output: `shape`, of that type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unslice {
    pub shape: [usize; 2],
    pub at: [usize; 2],
}

impl Operation for Unslice {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        let (rows, columns) = matrix(inputs[0], "x")?;
        let [row, column] = self.at;
        block([row, row.saturating_add(rows)], self.shape[0], "rows")?;
        block([column, column.saturating_add(columns)], self.shape[1], "columns")?;
        Ok(vec![TensorType::new(inputs[0].dtype, self.shape)])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let &[rows, columns] = ctx.graph.shape(node.inputs[0])? else { return Ok(()) };
        let [row, column] = self.at;
        let dx = ctx.graph.one(Slice { rows: [row, row + rows], columns: [column, column + columns] }, &[dy])?;
        ctx.add(node.inputs[0], dx)
    }
}

/// The size of a range, which is not empty and lies in `whole`.
fn block([begin, end]: [usize; 2], whole: usize, what: &str) -> Result<usize, String> {
    match end.checked_sub(begin) {
        Some(n) if n > 0 && end <= whole => Ok(n),
        _ => Err(format!("{what} {begin}..{end} of a matrix with {whole}")),
    }
}
