//! Attention on matrix units: operands are converted to f16 once per call, and one kernel makes each kind of sum.

use super::attention::{MAX_HEAD_DIM, TILE, params, variant};
use super::choice::{Question, class, others_of};
use super::{Lowering, MatrixUnits, Target, UNUSED, View, code, rows_of};
use crate::source::LANES;
use sparta_graph::DType;
use sparta_graph::ops::Attention;

/// Columns of a slice of the operands of the scores.
const DEPTH: u32 = 32;
/// Rows of the other side of a tile of scores: by rule the first if there is memory for it.
const SIDES: [u32; 2] = [64, 32];
/// Bytes of workgroup memory required for tiles of scores with 64 rows on both sides.
const SQUARE: u32 = 47 << 10;
/// Calls with more rows are alike.
const MOST_ROWS: usize = 4096;

/// The kind of sum made by a launch of `attention_units`.
#[derive(Clone, Copy)]
enum Kind {
    LogSumExp,
    O,
    Dq,
    Dk,
    Dv,
}

/// The operands as f16, and their exponents.
#[derive(Clone, Copy)]
struct Halves {
    values: View,
    exponents: View,
}

impl Lowering<'_> {
    /// The matrix units that serve an attention op or its gradient.
    pub(super) fn attention_units(&self, op: &Attention) -> Result<Option<MatrixUnits>, String> {
        let q = self.input(0)?;
        let rows = rows_of(q);
        // The largest call: gradients, with all query heads of a key head in one workgroup.
        let rounds = rows.div_ceil(TILE) * 2 * self.rounds_of_tile(op) * (op.heads / op.kv_heads.max(1));
        let fits = self.bytes_of_halves(op, rows, true) <= self.bounds.binding && rounds <= self.bounds.rounds;
        let serves = q.ty.dtype.size() == 2 && (1..=MAX_HEAD_DIM).contains(&op.head_dim) && fits;
        Ok(self.bounds.attention_units.filter(|_| serves))
    }

    /// Rounds of all loops of a thread for one tile of the other rows.
    fn rounds_of_tile(&self, op: &Attention) -> usize {
        8 + 2 * padded(op).div_ceil(DEPTH as usize) + 4
    }

    fn bytes_of_halves(&self, op: &Attention, rows: usize, grads: bool) -> usize {
        2 * heads(op, grads) * rows.next_multiple_of(TILE) * padded(op)
    }

    pub(super) fn attention_on_units(&mut self, op: &Attention, units: &MatrixUnits) -> Result<(), String> {
        let inputs = self.inputs(&["q", "k", "v", "spans"])?;
        let used = self.used;
        let halves = self.push_halves(op, units, &inputs[..3])?;
        let lse = self.whole(self.output(1)?, "lse")?;
        let others = self.other_rows(op, units, 3);
        self.push_units(op, units, Kind::LogSumExp, (halves, inputs[3], lse, others), None, 1)?;
        let o = self.head_target(0, "o", op)?;
        self.push_units(op, units, Kind::O, (halves, inputs[3], lse, others), Some(&o), 1)?;
        self.finish(o);
        self.used = used;
        Ok(())
    }

    pub(super) fn attention_grad_on_units(&mut self, op: &Attention, units: &MatrixUnits) -> Result<(), String> {
        let inputs = self.inputs(&["q", "k", "v", "do", "ld", "spans"])?;
        let used = self.used;
        let halves = self.push_halves(op, units, &inputs[..4])?;
        let operands = (halves, inputs[5], inputs[4], self.other_rows(op, units, 5));
        let dq = self.head_target(0, "dq", op)?;
        self.push_units(op, units, Kind::Dq, operands, Some(&dq), 1)?;
        self.finish(dq);
        let parts = self.grad_parts_of(op)?;
        if parts == 1 {
            for (i, what, kind) in [(1, "dk", Kind::Dk), (2, "dv", Kind::Dv)] {
                let target = self.head_target(i, what, op)?;
                self.push_units(op, units, kind, operands, Some(&target), 1)?;
                self.finish(target);
            }
        } else {
            let views = self.grad_parts(op, parts)?;
            for (view, kind) in views.into_iter().zip([Kind::Dk, Kind::Dv]) {
                let target = Target { view, dtype: DType::F32, rounded_to: None };
                self.push_units(op, units, kind, operands, Some(&target), parts)?;
            }
            self.sum_grad_parts(op, parts, views)?;
        }
        self.used = used;
        Ok(())
    }

    /// Launches the rounding of q, k, v and, for gradients, do.
    fn push_halves(&mut self, op: &Attention, units: &MatrixUnits, operands: &[View]) -> Result<Halves, String> {
        let (q, grads) = (self.input(0)?, operands.len() == 4);
        let rows = rows_of(q);
        let values = self.scratch(self.bytes_of_halves(op, rows, grads) / 4, "operands in f16")?;
        let tiles = rows.div_ceil(TILE) * heads(op, grads);
        let exponents = self.scratch(tiles, "exponents of operands")?;
        let constants = [("HEAD_DIM", op.head_dim as u32), ("D_O", u32::from(grads))];
        let constants = [&constants[..], &[("UNITS", units.size), ("X", code(q.ty.dtype))]].concat();
        let params = [rows as u32, op.heads as u32, op.kv_heads as u32];
        let bindings = [operands, &[values, exponents]].concat();
        self.push("attention_half", &constants, &params, &bindings).groups(tiles);
        Ok(Halves { values, exponents })
    }

    /// Rows of the other side of a tile of scores; `spans` is the position of that input.
    fn other_rows(&mut self, op: &Attention, units: &MatrixUnits, spans: usize) -> u32 {
        if units.memory < SQUARE {
            return SIDES[1];
        }
        let (call, flops) = (self.call, self.bounds.flops);
        let rows = call.inputs.first().map_or(0, rows_of);
        let name = || format!("{} units {}x{} {}", call.op.name(), op.heads, op.head_dim, class(rows, MOST_ROWS));
        let chosen = self.chosen(name, |name| Question::attention(name, op, call, spans, flops, &SIDES));
        chosen.and_then(others_of).filter(|others| SIDES.contains(others)).unwrap_or(SIDES[0])
    }

    /// Launches one kind of sum. `terms` are the log-sum-exp, or what the op `attention_delta` makes; a tile has `others` rows of
    /// the other side.
    fn push_units(
        &mut self,
        op: &Attention,
        units: &MatrixUnits,
        kind: Kind,
        (halves, spans, terms, others): (Halves, View, View, u32),
        target: Option<&Target>,
        parts: usize,
    ) -> Result<(), String> {
        let rows = rows_of(self.input(0)?);
        let (keys, rng_at) = match kind {
            Kind::LogSumExp | Kind::O => (false, 4),
            Kind::Dq => (false, 6),
            Kind::Dk | Kind::Dv => (true, 6),
        };
        let lanes = lanes(op, units, kind);
        let mut constants = variant(op).to_vec();
        constants.extend([("LANES", lanes), ("UNITS", units.size), ("SUBGROUP", units.subgroup)]);
        constants.extend([("VECTOR_MEMORY", u32::from(units.vectors)), ("OTHERS", others), ("DEPTH", DEPTH)]);
        constants.extend([("KIND", kind as u32), ("Y", target.map_or(0, |target| code(target.dtype)))]);
        let mut bindings = vec![halves.values, halves.exponents, spans, terms];
        bindings.extend(target.map(|target| target.view));
        let rng = self.call.inputs.get(rng_at).map_or(Ok(UNUSED), |rng| self.whole(rng, "rng"))?;
        let groups = rows.div_ceil(TILE) * if keys { op.kv_heads * parts } else { op.heads };
        let params = params(op, rows, parts, 0);
        self.push("attention_units", &constants, &params, &bindings).rng(rng).groups(groups);
        Ok(())
    }
}

/// Threads of a workgroup: as few as have enough registers, and no more subgroups than a tile of scores has fragments.
/// Small subgroups are those of software drivers, whose compiler takes long over many fragments.
fn lanes(op: &Attention, units: &MatrixUnits, kind: Kind) -> u32 {
    let large = matches!(kind, Kind::Dq | Kind::Dk) && op.head_dim > 128;
    let most = TILE as u32 * 32 / units.size.pow(2) * units.subgroup;
    most.min(if large || units.subgroup < 16 { LANES } else { units.lanes() })
}

/// Columns of a head as f16.
fn padded(op: &Attention) -> usize {
    op.head_dim.next_multiple_of(32)
}

/// Heads of all operands together.
fn heads(op: &Attention, grads: bool) -> usize {
    (1 + usize::from(grads)) * op.heads + 2 * op.kv_heads
}
