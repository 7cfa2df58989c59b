use super::*;

/// Inverted dropout by counter: element i is dropped when lane i % 4 of Philox(key = rng[0..2], counter = (i / 4, salt,
/// 0, 0)) times 2^-32 is below `p`; the others are divided by 1 - p. The gradient is the same op on `dy`.
///
/// Inputs: `x` f32 or bf16, `rng` u32 `[4]`. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropout {
    pub p: f32,
    /// Distinguishes the uses in a graph.
    pub salt: u32,
}

impl Operation for Dropout {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        probability(self.p)?;
        activation(inputs[0], "x")?;
        rng_input(inputs[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let (Some(dy), true) = (grads[0], ctx.needs(node.inputs[0])) else { return Ok(()) };
        let dx = ctx.graph.one(self.clone(), &[dy, node.inputs[1]])?;
        ctx.add(node.inputs[0], dx)
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
