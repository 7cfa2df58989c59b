use super::*;

/// The sum of all rows, the gradient of a bias. Input: f32 or bf16 `[T, n]`. Output: f32 `[n]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnSum {}

impl Operation for ColumnSum {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        let (_, columns) = matrix(inputs[0], "x")?;
        Ok(vec![TensorType::f32([columns])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        broadcast_grad(ctx, node, grads)
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        inputs[0].numel() as u64
    }
}
