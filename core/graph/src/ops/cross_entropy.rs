use super::*;

/// Cross-entropy of rows of logits, soft-capped first if a cap is given: `cap * tanh(x / cap)`. A row whose label is
/// [`IGNORED`] does not count.
///
/// Inputs: `logits` f32 `[N, C]`, `labels` u32 `[N]`, `step`. Outputs: the loss f32 `[1]`, `step[LOSS_WEIGHT]` times
/// the sum of the rows' losses; `lse` f32 `[N]`, the log-sum-exp of each row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CrossEntropy {
    #[serde(default)]
    pub soft_cap: Option<f32>,
}

impl Operation for CrossEntropy {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        let rows = check(inputs[0], inputs[1])?;
        step_input(inputs[2])?;
        Ok(vec![TensorType::f32([1]), TensorType::f32([rows])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        no_grad_of_output("cross_entropy", grads, 1)?;
        let [logits, labels, step] = node.inputs[..] else { return Ok(()) };
        let (Some(d_loss), true) = (grads[0], ctx.needs(logits)) else { return Ok(()) };
        let inputs = [logits, labels, node.outputs[1], step, d_loss];
        let dx = ctx.graph.one(CrossEntropyGrad { soft_cap: self.soft_cap }, &inputs)?;
        ctx.add(logits, dx)
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * inputs[0].numel() as u64
    }
}

/// `dlogits = d_loss * step[LOSS_WEIGHT] * (softmax - one_hot)`, times the derivative of the soft cap; zero in ignored
/// rows.
///
/// Inputs: `logits`, `labels`, `lse`, `step`, `d_loss` f32 `[1]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CrossEntropyGrad {
    #[serde(default)]
    pub soft_cap: Option<f32>,
}

impl Operation for CrossEntropyGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 5..=5)?;
        let rows = check(inputs[0], inputs[1])?;
        shape(inputs[2], "lse", &[rows])?;
        step_input(inputs[3])?;
        shape(inputs[4], "d_loss", &[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * inputs[0].numel() as u64
    }
}

fn check(logits: &TensorType, labels: &TensorType) -> Result<usize, String> {
    f32s(logits, "logits")?;
    let (rows, _) = matrix(logits, "logits")?;
    dtype(labels, "labels", DType::U32)?;
    shape(labels, "labels", &[rows])?;
    Ok(rows)
}
