use super::*;

/// Binary cross-entropy of logits, one yes-or-no question per element; an element whose label is NaN does not count.
///
/// Inputs: `logits` f32 `[N, C]`, `labels` f32 `[N, C]` (the probability of yes), `step`. Output: f32 `[1]`,
/// `step[LOSS_WEIGHT]` times the sum over elements of `ln(1 + e^x) - y x`, as torch's BCEWithLogitsLoss has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BinaryCrossEntropy {}

impl Operation for BinaryCrossEntropy {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        element_loss(inputs)
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        element_loss_grad(BinaryCrossEntropyGrad {}.into(), ctx, node, grads)
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        6 * inputs[0].numel() as u64
    }
}

/// `dlogits = d_loss * step[LOSS_WEIGHT] * (sigmoid(x) - y)`, zero where the label is NaN.
///
/// Inputs: `logits`, `labels`, `step`, `d_loss` f32 `[1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BinaryCrossEntropyGrad {}

impl Operation for BinaryCrossEntropyGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        element_loss_grad_type(inputs)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        4 * inputs[0].numel() as u64
    }
}

// ---- what losses of single elements share

/// The type of the loss of `x`, `labels` f32 `[N, C]` and `step`.
pub(super) fn element_loss(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    count(inputs, 3..=3)?;
    f32s(inputs[0], "x")?;
    matrix(inputs[0], "x")?;
    f32s(inputs[1], "labels")?;
    shape(inputs[1], "labels", &inputs[0].shape)?;
    step_input(inputs[2])?;
    Ok(vec![TensorType::f32([1])])
}

/// The type of the gradient of [`element_loss`]; one more input is `d_loss`.
pub(super) fn element_loss_grad_type(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    count(inputs, 4..=4)?;
    element_loss(&inputs[..3])?;
    f32s(inputs[3], "d_loss")?;
    shape(inputs[3], "d_loss", &[1])?;
    Ok(vec![inputs[0].clone()])
}

pub(super) fn element_loss_grad(
    op: Op,
    ctx: &mut GradCtx,
    node: &Node,
    grads: &[Option<Value>],
) -> Result<(), GraphError> {
    let [x, labels, step] = node.inputs[..] else { return Ok(()) };
    let (Some(d_loss), true) = (grads[0], ctx.needs(x)) else { return Ok(()) };
    let dx = ctx.graph.one(op, &[x, labels, step, d_loss])?;
    ctx.add(x, dx)
}
