use super::*;

/// `y = x / sqrt(mean(x^2) + eps) * w` over the last `n` elements, n the length of `w`; with `plus_one` the factor is
/// `1 + w` (Gemma).
///
/// Inputs: `x` f32 or bf16 `[T, m]` with m a multiple of n (m / n heads are normalised separately), `w [n]` of any float
/// type. Outputs: as `x`, or of the type `output`; with `rate` also `1 / sqrt(mean(x^2) + eps)` of each norm, f32
/// `[T, m / n]`, which the gradient of `w` reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RmsNorm {
    pub eps: f32,
    pub plus_one: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<DType>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rate: bool,
}

impl Operation for RmsNorm {
    fn cheap(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 2..=2)?;
        let rates = check(inputs[0], inputs[1])?;
        let y = TensorType::new(output_type(self.output, inputs[0])?, inputs[0].shape.clone());
        Ok([vec![y], if self.rate { vec![rates] } else { vec![] }].concat())
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        no_grad_of_output("rms_norm", grads, 1)?;
        let Some(dy) = grads[0] else { return Ok(()) };
        let (x, w) = (node.inputs[0], node.inputs[1]);
        if ctx.needs(w) {
            let width = ctx.graph.shape(w)?[0];
            let rate = match node.outputs.get(1) {
                Some(&rate) => rate,
                None => ctx.extend(node, RmsNorm { rate: true, ..self.clone() }, &[], 1)?[0],
            };
            let index = ctx.sampled(w).map(|(index, _)| index);
            let inputs: Vec<Value> = [x, dy, rate].into_iter().chain(index).collect();
            let dw = ctx.graph.one(RmsNormGradW { width }, &inputs)?;
            match index {
                Some(_) => ctx.add_sampled(w, dw)?,
                None => ctx.add(w, dw)?,
            }
        }
        if ctx.needs(x) {
            let mut inputs = vec![x, w, dy];
            inputs.extend(ctx.take(x, ctx.graph.ty(x)?.dtype));
            let dx = ctx.graph.one(RmsNormGrad { eps: self.eps, plus_one: self.plus_one }, &inputs)?;
            ctx.add(x, dx)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        4 * inputs[0].numel() as u64
    }
}

/// `dx = r (g - x r^2 mean(g x)) + acc` with `r = 1 / sqrt(mean(x^2) + eps)` and `g = dy * w`.
///
/// Inputs: `x`, `w`, `dy` f32 or bf16, and optionally `acc` of the type of `x`, which is added (the gradient of a
/// residual path). Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RmsNormGrad {
    pub eps: f32,
    pub plus_one: bool,
}

impl Operation for RmsNormGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=4)?;
        check(inputs[0], inputs[1])?;
        activation(inputs[2], "dy")?;
        shape(inputs[2], "dy", &inputs[0].shape)?;
        if let Some(acc) = inputs.get(3) {
            like(acc, "acc", inputs[0])?;
        }
        Ok(vec![inputs[0].clone()])
    }

    fn reuses(&self) -> &'static [(usize, usize)] {
        &[(0, 3)]
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        8 * inputs[0].numel() as u64
    }
}

/// `dw[i] = sum over rows of dy[i] * x[i] * r`, for all elements or those at `index`.
///
/// Inputs: `x`, `dy`, each f32 or bf16; `r`, the `rate` of [`RmsNorm`]; optionally `index` u32 `[n]`. Output: f32
/// `[width]`, or `[n]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RmsNormGradW {
    pub width: usize,
}

impl Operation for RmsNormGradW {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=4)?;
        let rates = check(inputs[0], &TensorType::f32([self.width]))?;
        activation(inputs[1], "dy")?;
        shape(inputs[1], "dy", &inputs[0].shape)?;
        like(inputs[2], "rate", &rates)?;
        let Some(index) = inputs.get(3) else { return Ok(vec![TensorType::f32([self.width])]) };
        dtype(index, "index", DType::U32)?;
        Ok(vec![TensorType::f32([vector(index, "index")?])])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        4 * inputs[0].numel() as u64
    }
}

/// The type of the norms' rates.
fn check(x: &TensorType, w: &TensorType) -> Result<TensorType, String> {
    activation(x, "x")?;
    floats(w, "w")?;
    let (rows, columns) = matrix(x, "x")?;
    let width = vector(w, "w")?;
    if width == 0 || !columns.is_multiple_of(width) {
        return Err(format!("rows of {columns} elements are not made of norms of width {width}"));
    }
    Ok(TensorType::f32([rows, columns / width]))
}
