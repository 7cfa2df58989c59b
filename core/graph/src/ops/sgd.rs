use super::*;

/// Gradient descent with momentum and weight decay in the gradient (the arithmetic of torch.optim.SGD without
/// dampening), in place:
///
/// ```text
/// g = clip.coef * grad + decay p;  b = momentum b + g;  p = p - lr_factor step.lr b
/// ```
///
/// A negative `clip.coef` changes nothing.
///
/// Inputs: `p` f32, overwritten; `grad` f32 of the same shape; `clip` f32 `[2]` of [`ClipCoef`]; `step`; unless
/// `momentum` is 0, `b` f32 of the same shape, overwritten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    pub momentum: f32,
    pub weight_decay: f32,
    /// Factor of the step's learning rate.
    pub lr_factor: f32,
}

impl Sgd {
    fn has_state(&self) -> bool {
        self.momentum != 0.0
    }
}

impl Operation for Sgd {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 4 + usize::from(self.has_state());
        count(inputs, expected..=expected)?;
        optimizer_inputs(inputs[0], inputs[1], inputs[2], inputs[3])?;
        if let Some(b) = inputs.get(4) {
            f32s(b, "b")?;
            shape(b, "b", &inputs[0].shape)?;
        }
        Ok(vec![])
    }

    fn writes(&self) -> &'static [usize] {
        if self.has_state() { &[0, 4] } else { &[0] }
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        7 * inputs[0].numel() as u64
    }
}
