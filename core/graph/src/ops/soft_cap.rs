use super::*;

/// `y = cap * tanh(x / cap)`, elementwise. Input: `x` f32 or bf16. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SoftCap {
    pub cap: f32,
}

impl Operation for SoftCap {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let dx = ctx.graph.one(SoftCapGrad { cap: self.cap }, &[node.inputs[0], dy])?;
        ctx.add(node.inputs[0], dx)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// `dx = dy * (1 - tanh(x / cap)^2)`. Inputs: `x`, `dy`, of one type. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SoftCapGrad {
    pub cap: f32,
}

impl Operation for SoftCapGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "x")?;
        like(inputs[1], "dy", inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}
