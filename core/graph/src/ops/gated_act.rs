use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, transformers' `gelu_pytorch_tanh`
    GeluTanh,
}

/// `y = act(gate) * up`, elementwise. Inputs and output: f32 or bf16, of one type and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatedAct {
    pub act: Activation,
}

impl Operation for GatedAct {
    fn cheap(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "gate")?;
        like(inputs[1], "up", inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dy) = grads[0] else { return Ok(()) };
        let (gate, up) = (node.inputs[0], node.inputs[1]);
        if !ctx.needs(gate) && !ctx.needs(up) {
            return Ok(());
        }
        let outputs = ctx.graph.apply(GatedActGrad { act: self.act }.into(), &[gate, up, dy])?;
        for (input, grad) in [gate, up].into_iter().zip(outputs) {
            ctx.add_if_needed(input, grad)?;
        }
        Ok(())
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        10 * inputs[0].numel() as u64
    }
}

/// `dgate = dy * up * act'(gate)`, `dup = dy * act(gate)`. Inputs: `gate`, `up`, `dy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatedActGrad {
    pub act: Activation,
}

impl Operation for GatedActGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        activation(inputs[0], "gate")?;
        like(inputs[1], "up", inputs[0])?;
        like(inputs[2], "dy", inputs[0])?;
        Ok(vec![inputs[0].clone(), inputs[0].clone()])
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1), (0, 2), (1, 2)]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        20 * inputs[0].numel() as u64
    }
}
