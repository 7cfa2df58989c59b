use super::binary_cross_entropy::{element_loss, element_loss_grad, element_loss_grad_type};
use super::*;

/// Squared error; an element whose label is NaN does not count.
///
/// Inputs: `x` f32 `[N, C]`, `labels` f32 `[N, C]`, `step`. Output: f32 `[1]`, `step[LOSS_WEIGHT]` times the sum over
/// elements of `(x - y)^2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SquaredError {}

impl Operation for SquaredError {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        element_loss(inputs)
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        element_loss_grad(SquaredErrorGrad {}.into(), ctx, node, grads)
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * inputs[0].numel() as u64
    }
}

/// `dx = 2 * d_loss * step[LOSS_WEIGHT] * (x - y)`, zero where the label is NaN.
///
/// Inputs: `x`, `labels`, `step`, `d_loss` f32 `[1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SquaredErrorGrad {}

impl Operation for SquaredErrorGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        element_loss_grad_type(inputs)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[0].numel() as u64
    }
}
