use super::*;

/// Which operands of a matrix product are stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `a [m, k]`, `b [n, k]`: a linear layer with its weight as stored.
    Nt,
    /// `a [m, k]`, `b [k, n]`: the gradient of the layer's input.
    Nn,
    /// `a [k, m]`, `b [k, n]`: the gradient of the weight.
    Tn,
}

/// `c = scale * op(a) op(b) + bias + residual`. Stored values of any type are multiplied exactly and summed in f32: a
/// product never rounds an operand.
///
/// Inputs: `a` f32 or bf16, `b` of any float type (f32 or bf16 for `Tn`), then `bias [n]` of any float type if `bias`,
/// then `residual [m, n]` of the output's type if `residual`. Output: `[m, n]` of the type `output`, by default that of
/// `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    pub layout: Layout,
    pub scale: f32,
    pub bias: bool,
    pub residual: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<DType>,
}

impl Linear {
    pub fn plain(layout: Layout) -> Self {
        Linear { layout, scale: 1.0, bias: false, residual: false, output: None }
    }

    /// (m, n, k).
    pub fn dims(&self, a: &TensorType, b: &TensorType) -> Result<(usize, usize, usize), String> {
        let (a0, a1) = matrix(a, "a")?;
        let (b0, b1) = matrix(b, "b")?;
        let (m, k, n, kb) = match self.layout {
            Layout::Nt => (a0, a1, b0, b1),
            Layout::Nn => (a0, a1, b1, b0),
            Layout::Tn => (a1, a0, b1, b0),
        };
        if k != kb {
            return Err(format!(
                "inner dimensions differ in {:?}: a {:?}, b {:?}",
                self.layout, a.shape, b.shape
            ));
        }
        Ok((m, n, k))
    }

    /// The position of the residual among the inputs.
    pub fn residual_index(&self) -> Option<usize> {
        self.residual.then_some(2 + usize::from(self.bias))
    }
}

/// `scale * op(a) op(b)` in the type of the target's gradient, with the gradient accumulated so far as the residual.
fn product(ctx: &mut GradCtx, target: Value, layout: Layout, scale: f32, a: Value, b: Value) -> Result<(), GraphError> {
    let output = ctx.grad_type(target)?;
    let so_far = ctx.take(target, output);
    let mut inputs = vec![a, b];
    inputs.extend(so_far);
    let op = Linear { layout, scale, bias: false, residual: so_far.is_some(), output: Some(output) };
    let grad = ctx.graph.one(op, &inputs)?;
    ctx.add(target, grad)
}

impl Operation for Linear {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 2 + usize::from(self.bias) + usize::from(self.residual);
        count(inputs, expected..=expected)?;
        activation(inputs[0], "a")?;
        floats(inputs[1], "b")?;
        if self.layout == Layout::Tn {
            activation(inputs[1], "b")?;
        }
        let output = output_type(self.output, inputs[0])?;
        let (m, n, _) = self.dims(inputs[0], inputs[1])?;
        if self.bias {
            floats(inputs[2], "bias")?;
            shape(inputs[2], "bias", &[n])?;
        }
        if let Some(i) = self.residual_index() {
            like(inputs[i], "residual", &TensorType::new(output, [m, n]))?;
        }
        Ok(vec![TensorType::new(output, [m, n])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(dc) = grads[0] else { return Ok(()) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        if let Some(i) = self.residual_index() {
            ctx.add_if_needed(node.inputs[i], dc)?;
        }
        if self.bias && ctx.needs(node.inputs[2]) {
            let db = ctx.graph.one(ColumnSum {}, &[dc])?;
            ctx.add(node.inputs[2], db)?;
        }
        if !ctx.needs(a) && !ctx.needs(b) {
            return Ok(());
        }
        // A product of bf16 values also has bf16 operands in the backward pass: the f32 gradient of a residual stream
        // is rounded here, once for both products.
        let dc = match ctx.graph.ty(a)?.dtype {
            DType::BF16 => ctx.cast(dc, DType::BF16)?,
            _ => dc,
        };
        if ctx.needs(b) {
            match (self.layout, ctx.sampled(b)) {
                (Layout::Nt, Some((index, Some(row_ptr)))) => {
                    let op = SampledGrad { scale: self.scale, sampling: Sampling::Auto };
                    let grad = ctx.graph.one(op, &[dc, a, index, row_ptr])?;
                    ctx.add_sampled(b, grad)?;
                }
                (Layout::Nt, _) => product(ctx, b, Layout::Tn, self.scale, dc, a)?,
                (Layout::Nn, _) => product(ctx, b, Layout::Tn, self.scale, a, dc)?,
                (Layout::Tn, _) => product(ctx, b, Layout::Nn, self.scale, a, dc)?,
            }
        }
        if ctx.needs(a) {
            match self.layout {
                Layout::Nt => product(ctx, a, Layout::Nn, self.scale, dc, b)?,
                Layout::Nn => product(ctx, a, Layout::Nt, self.scale, dc, b)?,
                Layout::Tn => product(ctx, a, Layout::Nt, self.scale, b, dc)?,
            }
        }
        Ok(())
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        match (self.residual, self.bias) {
            (true, true) => &[(0, 3)],
            (true, false) => &[(0, 2)],
            _ => &[],
        }
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.dims(inputs[0], inputs[1]).map_or(0, |(m, n, k)| 2 * m as u64 * n as u64 * k as u64)
    }
}
