use super::*;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    Exp,
    /// `1 / sqrt(x)`
    Rsqrt,
    Abs,
    Relu,
    /// To the nearest whole number, of two the even one. Its derivative is 0.
    Round,
    /// 1 above 0, otherwise 0. Its derivative is 0.
    Step,
}

impl Function {
    pub const ALL: [Function; 6] =
        [Function::Exp, Function::Rsqrt, Function::Abs, Function::Relu, Function::Round, Function::Step];
}

/// `y = function(x)`, elementwise. Input: f32 or bf16. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map {
    pub function: Function,
}

impl Operation for Map {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=1)?;
        activation(inputs[0], "x")?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let dx = ctx.graph.one(MapGrad { function: self.function }, &[node.inputs[0], dy])?;
        ctx.add(node.inputs[0], dx)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// `dx = function'(x) dy`, elementwise; at 0 the derivatives of abs and relu are 0, as PyTorch has them.
///
/// Inputs: `x`, `dy`, f32 or bf16 of one shape. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapGrad {
    pub function: Function,
}

impl Operation for MapGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        activation(inputs[0], "x")?;
        activation(inputs[1], "dy")?;
        shape(inputs[1], "dy", &inputs[0].shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}
