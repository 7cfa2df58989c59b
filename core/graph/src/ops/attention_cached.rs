use super::*;

/// Attention of new rows on keys and values that are kept, for inference: `o[t] = sum over j of softmax(s[t, j]) v[j]`,
/// with the scores of [`Attention`], over the rows j of the span of t, of which `window` leaves the last ones. A row
/// with an empty span has zeros for its result.
///
/// Inputs: `q [T, heads * head_dim]`, `k`, `v [C, kv_heads * head_dim]`, all f32 or all bf16, `spans` u32 `[T, 2]`:
/// rows
/// `[start, end)` of k and v, none beyond C. Output: as `q`. There is no dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttentionCached(pub Attention);

impl Operation for AttentionCached {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 4..=4)?;
        self.0.check_heads()?;
        if self.0.dropout > 0.0 {
            return Err("there is no dropout where keys and values are kept".into());
        }
        let [q, k, v, rows_of] = inputs else { return Err("expected 4 inputs".into()) };
        let (rows, _) = matrix(q, "q")?;
        activation(q, "q")?;
        shape(q, "q", &[rows, self.0.heads * self.0.head_dim])?;
        let (kept, _) = matrix(k, "k")?;
        for (ty, what) in [(k, "k"), (v, "v")] {
            like(ty, what, &TensorType::new(q.dtype, [kept, self.0.kv_heads * self.0.head_dim]))?;
        }
        spans(rows_of, rows)?;
        Ok(vec![(*q).clone()])
    }

    /// As if each row attended to the whole cache.
    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        let seen = self.0.window.unwrap_or(usize::MAX).min(inputs[1].shape[0]);
        4 * (inputs[0].numel() * seen) as u64
    }
}
