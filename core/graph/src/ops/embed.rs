use super::*;

/// Rows of an embedding table: `y[t] = scale * table[tokens[t]]`.
///
/// Inputs: `table [V, d]` of any float type, `tokens [T]` u32. Output: f32 `[T, d]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embed {
    pub scale: f32,
    /// This row gets no gradient from the lookup (`padding_idx` of torch.nn.Embedding).
    pub padding: Option<u32>,
}

impl Operation for Embed {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        floats(inputs[0], "table")?;
        let (_, width) = matrix(inputs[0], "table")?;
        dtype(inputs[1], "tokens", DType::U32)?;
        let rows = vector(inputs[1], "tokens")?;
        Ok(vec![TensorType::f32([rows, width])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (table, tokens) = (node.inputs[0], node.inputs[1]);
        let (Some(dy), true) = (grads[0], ctx.needs(table)) else { return Ok(()) };
        let vocab = ctx.graph.shape(table)?[0];
        let op = EmbedGrad { vocab, scale: self.scale, padding: self.padding };
        let dense = ctx.graph.one(op, &[dy, tokens])?;
        ctx.add(table, dense)
    }
}

/// Gradient of the table: `dtable[v] = scale * sum of dy[t] over tokens[t] == v`, rows added in order of t.
///
/// Inputs: `dy` f32 `[T, d]`, `tokens [T]`. Output: f32 `[V, d]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbedGrad {
    pub vocab: usize,
    pub scale: f32,
    pub padding: Option<u32>,
}

impl Operation for EmbedGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        f32s(inputs[0], "dy")?;
        let (rows, width) = matrix(inputs[0], "dy")?;
        dtype(inputs[1], "tokens", DType::U32)?;
        shape(inputs[1], "tokens", &[rows])?;
        Ok(vec![TensorType::f32([self.vocab, width])])
    }
}
