//! Attention: tiles of 64 query rows or 64 key rows per workgroup.

use super::{Lowering, Target, UNUSED, View, code, dropout_threshold, lanes_for, rows, rows_of, words};
use crate::source::Constants;
use sparta_graph::DType;
use sparta_graph::ops::{Attention, AttentionDelta};

/// Rows of a workgroup's own tile.
pub(super) const TILE: usize = 64;
/// Enough workgroups to keep a large GPU busy.
const BUSY: usize = 256;
/// Bytes of workgroup memory required for tiles of scores with 64 rows on both sides.
const SQUARE: u32 = 25 << 10;
/// Threads of a workgroup where keys are kept.
const CACHED_LANES: u32 = 128;

/// The largest head that the kernels support, as they keep a tile's sums in registers.
pub(super) const MAX_HEAD_DIM: usize = 256;
/// The largest head for which one kernel makes the gradients of both keys and values.
const MOST_FOR_BOTH: usize = 128;

impl Lowering<'_> {
    pub(super) fn attention(&mut self, op: &Attention) -> Result<(), String> {
        if let Some(units) = self.attention_units(op)? {
            return self.attention_on_units(op, &units);
        }
        let rows = rows_of(self.input(0)?);
        let mut bindings = self.inputs(&["q", "k", "v", "spans"])?;
        let o = self.head_target(0, "o", op)?;
        bindings.extend([o.view, self.whole(self.output(1)?, "lse")?]);
        let rng = self.call.inputs.get(4).map_or(Ok(UNUSED), |rng| self.whole(rng, "rng"))?;
        self.check_rounds(op, rows, 1, 2)?;
        let (constants, params) = self.arguments(op, rows, o.dtype, 1)?;
        self.push("attention", &constants, &params, &bindings).rng(rng).groups(rows.div_ceil(TILE) * op.heads);
        self.finish(o);
        Ok(())
    }

    pub(super) fn attention_cached(&mut self, op: &Attention) -> Result<(), String> {
        let kept = rows_of(self.input(1)?);
        let per_tile = op.head_dim + CACHED_LANES as usize + 16;
        if kept.div_ceil(CACHED_LANES as usize) * per_tile > self.bounds.rounds {
            return Err(format!(
                "{kept} kept rows with heads of {} are more than the {} that this software driver can loop over; keep \
                 fewer with --context, or use the CPU backend",
                op.head_dim,
                self.bounds.rounds / per_tile * CACHED_LANES as usize
            ));
        }
        let (q, spans, o) = (self.input(0)?, self.input(3)?, self.output(0)?);
        let (k, v) = (self.whole(self.input(1)?, "k")?, self.whole(self.input(2)?, "v")?);
        for shard in self.target_shards(o, op.head_dim, &[q, spans])? {
            let target = self.target(o, &shard, op.head_dim)?;
            let constants = [&self.types(op, target.dtype)?[..], &[("LANES", CACHED_LANES)]].concat();
            let bindings = [rows(q, &shard), k, v, rows(spans, &shard), target.view];
            self.push("attention_cached", &constants, &params(op, shard.len(), kept, 0), &bindings)
                .groups(shard.len() * op.heads);
            self.finish(target);
        }
        Ok(())
    }

    pub(super) fn attention_delta(&mut self, op: &AttentionDelta) -> Result<(), String> {
        let pairs = rows_of(self.input(0)?) * op.heads;
        let mut bindings = self.inputs(&["o", "do", "lse"])?;
        bindings.push(self.whole(self.output(0)?, "ld")?);
        let params = [pairs as u32, op.head_dim as u32];
        let constants = [("LANES", lanes_for(op.head_dim)), ("X", code(self.input(0)?.ty.dtype))];
        self.push("attention_delta", &constants, &params, &bindings).groups(pairs);
        Ok(())
    }

    pub(super) fn attention_grad(&mut self, op: &Attention) -> Result<(), String> {
        if let Some(units) = self.attention_units(op)? {
            return self.attention_grad_on_units(op, &units);
        }
        let rows = rows_of(self.input(0)?);
        let inputs = self.inputs(&["q", "k", "v", "do", "ld", "spans"])?;
        let [q, k, v, d_o, ld, spans] = inputs[..] else { return Err("expected 6 inputs".into()) };
        let shared = [q, k, v, spans, d_o, ld];
        let rng = self.call.inputs.get(6).map_or(Ok(UNUSED), |rng| self.whole(rng, "rng"))?;
        let parts = self.grad_parts_of(op)?;
        self.check_rounds(op, rows, op.heads / op.kv_heads / parts, 4)?;
        let dq = self.head_target(0, "dq", op)?;
        let (constants, params) = self.arguments(op, rows, dq.dtype, 1)?;
        let bindings = [&shared[..], &[dq.view]].concat();
        self.push("attention_grad_q", &constants, &params, &bindings).rng(rng).groups(rows.div_ceil(TILE) * op.heads);
        self.finish(dq);
        if parts == 1 {
            let (dk, dv) = (self.head_target(1, "dk", op)?, self.head_target(2, "dv", op)?);
            self.attention_grad_kv(op, &shared, rng, [&dk, &dv], 1)?;
            self.finish(dv);
            self.finish(dk);
            return Ok(());
        }
        let views = self.grad_parts(op, parts)?;
        let [dk, dv] = views.map(|view| Target { view, dtype: DType::F32, rounded_to: None });
        self.attention_grad_kv(op, &shared, rng, [&dk, &dv], parts)?;
        self.sum_grad_parts(op, parts, views)
    }

    /// Launches the gradients of keys and values: both at once, or each on its own if the sums of both take too many
    /// registers.
    fn attention_grad_kv(
        &mut self,
        op: &Attention,
        shared: &[View],
        rng: View,
        [dk, dv]: [&Target; 2],
        parts: usize,
    ) -> Result<(), String> {
        let rows = rows_of(self.input(0)?);
        let (constants, params) = self.arguments(op, rows, dk.dtype, parts)?;
        let launches = if op.head_dim > MOST_FOR_BOTH { vec![(1, 0), (0, 1)] } else { vec![(1, 1)] };
        for (with_dk, with_dv) in launches {
            let constants = [&constants[..], &[("DK", with_dk), ("DV", with_dv)]].concat();
            let mut bindings = shared.to_vec();
            bindings.extend((with_dk == 1).then_some(dk.view));
            bindings.extend((with_dv == 1).then_some(dv.view));
            let groups = rows.div_ceil(TILE) * op.kv_heads * parts;
            self.push("attention_grad_kv", &constants, &params, &bindings).rng(rng).groups(groups);
        }
        Ok(())
    }

    /// The number of parts into which the query heads of a key head are divided for the gradients of keys and values:
    /// as few as keep a GPU busy.
    pub(super) fn grad_parts_of(&self, op: &Attention) -> Result<usize, String> {
        let tiles = rows_of(self.input(0)?).div_ceil(TILE) * op.kv_heads;
        let shared_by = op.heads / op.kv_heads;
        let enough = |parts: &usize| shared_by.is_multiple_of(*parts) && tiles * parts >= BUSY;
        Ok((1..shared_by).find(enough).unwrap_or(shared_by))
    }

    /// Scratch memory for dk and dv, split into this many parts for each key head, f32 `[rows, kv_heads * parts,
    /// head_dim]`.
    pub(super) fn grad_parts(&mut self, op: &Attention, parts: usize) -> Result<[View; 2], String> {
        let elements = rows_of(self.input(0)?) * op.kv_heads * parts * op.head_dim;
        let dk = self.scratch(elements, "gradients of the keys in parts")?;
        Ok([dk, self.scratch(elements, "gradients of the values in parts")?])
    }

    /// Launches the sums of the parts, in order.
    pub(super) fn sum_grad_parts(&mut self, op: &Attention, parts: usize, views: [View; 2]) -> Result<(), String> {
        let (dk, dv) = (self.output(1)?, self.output(2)?);
        let n = dk.ty.numel();
        let params = [n as u32, op.head_dim as u32, parts as u32];
        let bindings = [views[0], views[1], self.whole(dk, "dk")?, self.whole(dv, "dv")?];
        let threads = words(n, dk.ty.dtype);
        self.push("attention_grad_sum", &[("Y", code(dk.ty.dtype))], &params, &bindings).threads(threads);
        Ok(())
    }

    /// The target of a kernel that binds all of an output and writes it head by head.
    pub(super) fn head_target(&mut self, output: usize, what: &str, op: &Attention) -> Result<Target, String> {
        let output = self.output(output)?;
        self.whole(output, what)?;
        self.target(output, &(0..rows_of(output)), op.head_dim)
    }

    /// Refuses sizes that a device with limited loops would silently get wrong. `products` is the number per tile, and
    /// a workgroup does `heads` heads one after another.
    fn check_rounds(&self, op: &Attention, rows: usize, heads: usize, products: usize) -> Result<(), String> {
        let others = self.others() as usize;
        // A slice of 32 columns takes a round and 8 steps; with a single slice, weights take twice as many.
        let per_tile = 20 + 9 * products * op.head_dim.div_ceil(32);
        if rows.div_ceil(others) * per_tile * heads <= self.bounds.rounds {
            return Ok(());
        }
        let most = self.bounds.rounds / per_tile / heads * others;
        Err(format!(
            "{rows} rows with heads of {} are more than the {most} that this software driver can loop over; use fewer \
             tokens per micro-batch, or the CPU backend",
            op.head_dim
        ))
    }

    /// Rows of the tiles that a workgroup goes over.
    fn others(&self) -> u32 {
        if self.bounds.memory >= SQUARE { 64 } else { 32 }
    }

    pub(super) fn inputs(&self, names: &[&str]) -> Result<Vec<View>, String> {
        names.iter().enumerate().map(|(i, name)| self.whole(self.input(i)?, name)).collect()
    }

    /// Constants and parameters of the kernels in f32, for outputs of this type.
    fn arguments(
        &self,
        op: &Attention,
        rows: usize,
        output: DType,
        parts: usize,
    ) -> Result<(Constants, Vec<u32>), String> {
        let mut constants = self.types(op, output)?;
        let others = self.others();
        constants.push(("OTHERS", others));
        Ok((constants, params(op, rows, parts, others / 8)))
    }

    /// The constants that all kernels in f32 have.
    fn types(&self, op: &Attention, output: DType) -> Result<Constants, String> {
        if op.head_dim == 0 || op.head_dim > MAX_HEAD_DIM {
            return Err(format!("head_dim must be 1 to {MAX_HEAD_DIM} on this backend, got {}", op.head_dim));
        }
        let types = [("X", code(self.input(0)?.ty.dtype)), ("Y", code(output))];
        Ok([&variant(op)[..], &types].concat())
    }
}

/// Constants of all attention kernels.
pub(super) fn variant(op: &Attention) -> [(&'static str, u32); 3] {
    [
        ("HEAD_DIM", op.head_dim as u32),
        ("SOFT_CAP", u32::from(op.soft_cap.is_some())),
        ("DROPOUT", u32::from(op.dropout > 0.0)),
    ]
}

/// The `Params` of all attention kernels.
pub(super) fn params(op: &Attention, rows: usize, parts: usize, steps: u32) -> Vec<u32> {
    let keep = (1.0 / (1.0 - f64::from(op.dropout))) as f32;
    vec![
        rows as u32,
        op.heads as u32,
        op.kv_heads as u32,
        op.window.map_or(u32::MAX, |w| u32::try_from(w).unwrap_or(u32::MAX)),
        op.salt,
        dropout_threshold(op.dropout),
        keep.to_bits(),
        op.scale.to_bits(),
        op.soft_cap.unwrap_or(0.0).to_bits(),
        parts as u32,
        steps,
    ]
}
