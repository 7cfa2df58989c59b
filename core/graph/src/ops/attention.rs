use super::*;

/// Causal attention within each segment of a packed batch, with grouped query heads, an optional sliding window, logit
/// soft-cap and dropout of the probabilities.
///
/// Query row t of head h sees key rows j of head h / (heads / kv_heads) with `start <= j <= t` and, with a window w,
/// `j > t - w`, where start is the first row of t's segment. `s = scale * q.k`, then `s = cap * tanh(s / cap)`, then
/// softmax, then dropout: key row j is dropped when Philox(key = rng[0..2], counter = (j, t, h, salt)).x * 2^-32 < p,
/// and what stays is divided by 1 - p.
///
/// A device may round the probabilities of bf16 operands to bf16 before they are multiplied, and in the backward pass
/// also the gradients of the scores ([`crate::DeviceInfo::rounds_in_attention`]).
///
/// Inputs: `q [T, heads * head_dim]`, `k`, `v [T, kv_heads * head_dim]`, all f32 or all bf16, `spans` u32 `[T, 2]`, and
/// `rng` u32 `[4]` if `dropout > 0`. Outputs: `o` as `q`, `lse` f32 `[T, heads]`, the log-sum-exp of the scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    pub dropout: f32,
    pub salt: u32,
}

impl Attention {
    pub(super) fn check_heads(&self) -> Result<(), String> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} query heads cannot share {} key heads", self.heads, self.kv_heads));
        }
        if self.window == Some(0) {
            return Err("a sliding window of 0 sees nothing".into());
        }
        Ok(())
    }

    fn check(&self, q: &TensorType, k: &TensorType, v: &TensorType, rest: &[&TensorType]) -> Result<usize, String> {
        self.check_heads()?;
        probability(self.dropout)?;
        let (rows, _) = matrix(q, "q")?;
        activation(q, "q")?;
        for (ty, what, heads) in [(q, "q", self.heads), (k, "k", self.kv_heads), (v, "v", self.kv_heads)] {
            like(ty, what, &TensorType::new(q.dtype, [rows, heads * self.head_dim]))?;
        }
        spans(rest[0], rows)?;
        match (self.dropout > 0.0, rest.get(1)) {
            (true, Some(rng)) => rng_input(rng)?,
            (true, None) => return Err("dropout needs the rng input".into()),
            (false, Some(_)) => return Err("rng is given but dropout is 0".into()),
            (false, None) => {}
        }
        Ok(rows)
    }

    /// Score pairs times head size of one segment of this many rows. If segments are not known, all rows count as one.
    pub(crate) fn pair_flops(&self, rows: usize) -> u64 {
        let seen = self.window.map_or(rows, |w| w.min(rows)) as u64;
        (rows as u64 * seen / 2).max(1) * (self.heads * self.head_dim) as u64
    }
}

impl Operation for Attention {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 4..=5)?;
        let rows = self.check(inputs[0], inputs[1], inputs[2], &inputs[3..])?;
        Ok(vec![inputs[0].clone(), TensorType::f32([rows, self.heads])])
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        no_grad_of_output("attention", grads, 1)?;
        let Some(d_o) = grads[0] else { return Ok(()) };
        let [q, k, v, spans] = node.inputs[..4] else { return Ok(()) };
        if ![q, k, v].iter().any(|&x| ctx.needs(x)) {
            return Ok(());
        }
        let delta = AttentionDelta { heads: self.heads, head_dim: self.head_dim };
        let ld = ctx.graph.one(delta, &[node.outputs[0], d_o, node.outputs[1]])?;
        let mut inputs = vec![q, k, v, d_o, ld, spans];
        inputs.extend(node.inputs.get(4));
        let outputs = ctx.graph.apply(AttentionGrad(self.clone()).into(), &inputs)?;
        for (input, grad) in [q, k, v].into_iter().zip(outputs) {
            ctx.add_if_needed(input, grad)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        4 * self.pair_flops(inputs[0].shape[0])
    }
}

/// Per row and head the pair (log-sum-exp, `o . do`), which the gradient of attention reads together.
///
/// Inputs: `o`, `do [T, heads * head_dim]`, both f32 or both bf16, `lse` f32 `[T, heads]`. Output: f32 `[T, heads, 2]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionDelta {
    pub heads: usize,
    pub head_dim: usize,
}

impl Operation for AttentionDelta {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 3..=3)?;
        let (rows, _) = matrix(inputs[0], "o")?;
        activation(inputs[0], "o")?;
        shape(inputs[0], "o", &[rows, self.heads * self.head_dim])?;
        like(inputs[1], "do", inputs[0])?;
        like(inputs[2], "lse", &TensorType::f32([rows, self.heads]))?;
        Ok(vec![TensorType::f32([rows, self.heads, 2])])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[0].numel() as u64
    }
}

/// Gradients of attention by recomputing the probabilities from the log-sum-exp.
///
/// With `p = exp(s - lse)` and `dp = (do . v) * mask / (1 - dropout)`: `ds = p (dp - delta)` times the derivative of
/// the soft-cap; `dq = scale * ds k`, `dk = scale * ds^T q`, `dv = (p * mask / (1 - dropout))^T do`.
///
/// Inputs: `q`, `k`, `v`, `do` of one type, `ld` of [`AttentionDelta`], `spans`, and `rng` if `dropout > 0`. Outputs:
/// `dq`, `dk`, `dv`, of that type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttentionGrad(pub Attention);

impl Operation for AttentionGrad {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 6..=7)?;
        let rows = self.0.check(inputs[0], inputs[1], inputs[2], &inputs[5..])?;
        like(inputs[3], "do", inputs[0])?;
        like(inputs[4], "ld", &TensorType::f32([rows, self.0.heads, 2]))?;
        Ok(vec![inputs[0].clone(), inputs[1].clone(), inputs[2].clone()])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        10 * self.0.pair_flops(inputs[0].shape[0])
    }
}
