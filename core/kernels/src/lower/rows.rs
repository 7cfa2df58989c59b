//! Ops on rows: norms, rotary embedding, lookups and sums.

use super::{
    Lowering, UNUSED, View, code, elements, lanes_for, rows, rows_for_rounds, rows_of, split, vectors, width_of, words,
};
use sparta_graph::ops::{EmbedGrad, RmsNorm, RmsNormGrad, RmsNormGradW, Rope};
use sparta_graph::{DType, Operand};
use std::ops::Range;

/// Steps of columns of a workgroup of the column sums.
const COLUMNS: usize = 32;
/// Enough workgroups to keep a large GPU busy.
const BUSY: usize = 256;
/// Rows below which dividing a sum gains nothing.
const SHORTEST_CHUNK: usize = 64;

/// Sums of `sums` of the `width` columns over `rows` rows, taken `vectors` columns at a time, or one.
struct ColumnSums {
    rows: usize,
    width: usize,
    sums: usize,
    vectors: usize,
    /// Whether they are added to what is there.
    accumulate: bool,
}

fn offset(plus_one: bool) -> u32 {
    f32::from(u8::from(plus_one)).to_bits()
}

impl Lowering<'_> {
    pub(super) fn rms_norm(&mut self, op: &RmsNorm) -> Result<(), String> {
        let (x, w, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let weight = self.whole(w, "w")?;
        let rate = if op.rate { self.whole(self.output(1)?, "rate")? } else { UNUSED };
        let width = w.ty.numel();
        let per_row = width_of(x) / width;
        for shard in self.target_shards(y, width, &[x])? {
            let target = self.target(y, &shard, width)?;
            let vectors = vectors(width, &[x.ty.dtype, w.ty.dtype, target.dtype]);
            let constants = [
                ("LANES", lanes_for(width / vectors.max(1))),
                ("X", code(x.ty.dtype)),
                ("W", code(w.ty.dtype)),
                ("Y", code(target.dtype)),
                ("RATE", u32::from(op.rate)),
                ("VECTORS", vectors as u32),
            ];
            let (norms, first) = (shard.len() * per_row, shard.start * per_row);
            let params = [norms as u32, width as u32, op.eps.to_bits(), offset(op.plus_one), first as u32];
            let bindings = [rows(x, &shard), weight, target.view, rate];
            self.push("rms_norm", &constants, &params, &bindings).groups(norms);
            self.finish(target);
        }
        Ok(())
    }

    pub(super) fn rms_norm_grad(&mut self, op: &RmsNormGrad) -> Result<(), String> {
        let (x, w, dy, dx) = (self.input(0)?, self.input(1)?, self.input(2)?, self.output(0)?);
        let acc = self.call.inputs.get(3);
        let weight = self.whole(w, "w")?;
        let width = w.ty.numel();
        for shard in self.target_shards(dx, width, &[x, dy])? {
            let target = self.target(dx, &shard, width)?;
            let vectors = vectors(width, &[x.ty.dtype, w.ty.dtype, dy.ty.dtype, target.dtype]);
            let constants = [
                ("LANES", lanes_for(width / vectors.max(1))),
                ("X", code(x.ty.dtype)),
                ("W", code(w.ty.dtype)),
                ("DY", code(dy.ty.dtype)),
                ("ACC", u32::from(acc.is_some())),
                ("Y", code(target.dtype)),
                ("VECTORS", vectors as u32),
            ];
            let norms = shard.len() * (width_of(x) / width);
            let params = [norms as u32, width as u32, op.eps.to_bits(), offset(op.plus_one)];
            let acc = acc.map_or(UNUSED, |acc| rows(acc, &shard));
            let bindings = [rows(x, &shard), weight, rows(dy, &shard), acc, target.view];
            self.push("rms_norm_grad", &constants, &params, &bindings).groups(norms);
            self.finish(target);
        }
        Ok(())
    }

    pub(super) fn rms_norm_grad_w(&mut self, op: &RmsNormGradW) -> Result<(), String> {
        let (x, dy) = (self.input(0)?, self.input(1)?);
        let dw = self.whole(self.output(0)?, "dw")?;
        let rate = self.whole(self.input(2)?, "rate")?;
        let per_row = width_of(x) / op.width;
        let index = self.call.inputs.get(3);
        let chosen = index.map_or(Ok(UNUSED), |index| self.whole(index, "index"))?;
        let vectors = if index.is_some() { 0 } else { vectors(op.width, &[x.ty.dtype, dy.ty.dtype]) };
        let types = [("X", code(x.ty.dtype)), ("DY", code(dy.ty.dtype))];
        let constants = [&types[..], &[("CHOSEN", u32::from(index.is_some()))]].concat();
        let sums = self.output(0)?.ty.numel();
        for shard in self.row_shards(&[x, dy])? {
            let (norms, first) = (shard.len() * per_row, shard.start * per_row);
            let summed = ColumnSums { rows: norms, width: op.width, sums, vectors, accumulate: shard.start > 0 };
            let bindings = [rows(x, &shard), rows(dy, &shard), rate, chosen];
            self.column_sums("rms_norm_grad_w", &constants, &summed, &[first, sums], &bindings, dw)?;
        }
        Ok(())
    }

    pub(super) fn column_sum(&mut self) -> Result<(), String> {
        let x = self.input(0)?;
        let y = self.whole(self.output(0)?, "y")?;
        let width = width_of(x);
        let vectors = vectors(width, &[x.ty.dtype]);
        for shard in self.row_shards(&[x])? {
            let accumulate = shard.start > 0;
            let summed = ColumnSums { rows: shard.len(), width, sums: width, vectors, accumulate };
            self.column_sums("column_sum", &[("X", code(x.ty.dtype))], &summed, &[], &[rows(x, &shard)], y)?;
        }
        Ok(())
    }

    /// Launches a kernel that adds up rows: in chunks that keep a GPU busy, whose sums are then added up in order.
    fn column_sums(
        &mut self,
        name: &'static str,
        constants: &[(&'static str, u32)],
        summed: &ColumnSums,
        more: &[usize],
        bindings: &[View],
        to: View,
    ) -> Result<(), String> {
        let &ColumnSums { rows, width, sums, accumulate, .. } = summed;
        // Tensors without rows bind a single word.
        let vectors = if rows > 0 { summed.vectors } else { 0 };
        let groups = sums.div_ceil(COLUMNS * vectors.max(1));
        let most = (BUSY / groups.max(1)).min(self.bounds.binding / (4 * sums.max(1))).max(1);
        let chunk = rows.div_ceil(most).max(SHORTEST_CHUNK);
        let chunks = rows.div_ceil(chunk).max(1);
        let constants = [constants, &[("VECTORS", vectors as u32)]].concat();
        let params = |accumulate: bool| {
            let shared = [rows, width, usize::from(accumulate), chunk];
            shared.iter().chain(more).map(|&x| x as u32).collect::<Vec<_>>()
        };
        if chunks == 1 {
            self.push(name, &constants, &params(accumulate), &[bindings, &[to]].concat()).groups(groups);
            return Ok(());
        }
        let partial = self.scratch(chunks * sums, "sums of chunks of rows")?;
        self.push(name, &constants, &params(false), &[bindings, &[partial]].concat()).groups(groups * chunks);
        let vectors = self::vectors(sums, &[DType::F32]);
        let constants = [("X", code(DType::F32)), ("VECTORS", vectors as u32)];
        let params = [chunks, sums, usize::from(accumulate), chunks].map(|x| x as u32);
        let groups = sums.div_ceil(COLUMNS * vectors.max(1));
        self.push("column_sum", &constants, &params, &[partial, to]).groups(groups);
        self.used = partial.offset;
        Ok(())
    }

    pub(super) fn row_sum(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let width = width_of(x);
        for shard in self.row_shards(&[x, y])? {
            let vectors = vectors(width, &[x.ty.dtype]);
            let lanes = lanes_for(width / vectors.max(1));
            let constants = [("LANES", lanes), ("X", code(x.ty.dtype)), ("VECTORS", vectors as u32)];
            let params = [shard.len() as u32, width as u32];
            self.push("row_sum", &constants, &params, &[rows(x, &shard), rows(y, &shard)]).groups(shard.len());
        }
        Ok(())
    }

    pub(super) fn rope(&mut self, op: &Rope) -> Result<(), String> {
        let (x, spans, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let table = self.input(2)?;
        let positions = rows_of(table) as u32;
        let table = self.whole(table, "table")?;
        let direction = if op.inverse { -1.0f32 } else { 1.0 };
        let types = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
        let width = width_of(x);
        let whole = [op.head_dim, op.width(), op.width() / 2].map(|n| vectors(n, &[x.ty.dtype, y.ty.dtype]));
        let vectors = whole.into_iter().min().unwrap_or(0);
        for shard in self.row_shards(&[x, spans, y])? {
            let n = shard.len() * width;
            let sizes = [width, op.head_dim, op.width()].map(|n| n as u32);
            let params = [&[n as u32, shard.start as u32], &sizes[..], &[positions, direction.to_bits()]].concat();
            let bindings = [rows(x, &shard), rows(spans, &shard), table, rows(y, &shard)];
            self.push_elements("rope", &types, (n, vectors, y.ty.dtype), &params, &bindings);
        }
        Ok(())
    }

    /// Blocks of columns out of a matrix, which `blocks` make up, or into it.
    pub(super) fn columns(&mut self, matrix: &Operand, blocks: &[Operand], join: bool) -> Result<(), String> {
        let stride = words(width_of(matrix), matrix.ty.dtype);
        let mut begin = 0;
        for block in blocks {
            let width = words(width_of(block), block.ty.dtype);
            // Vectors of words.
            let whole = [width, stride, begin].iter().all(|n| n.is_multiple_of(4));
            let vectors = if whole { 4 } else { 0 };
            let constants = [("JOIN", u32::from(join)), ("VECTORS", vectors)];
            for shard in self.row_shards(&[matrix, block])? {
                let sizes = [shard.len() * width, width, stride, begin].map(|n| n as u32 / vectors.max(1));
                let bindings = [rows(matrix, &shard), rows(block, &shard)];
                self.push("columns", &constants, &sizes, &bindings).threads(sizes[0] as usize);
            }
            begin += width;
        }
        Ok(())
    }

    /// Rows of a table, in shards of the table and of the result.
    pub(super) fn embed(&mut self, scale: f32) -> Result<(), String> {
        let (table, tokens, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let width = width_of(table);
        for shard in self.target_shards(y, width, &[tokens])? {
            let target = self.target(y, &shard, width)?;
            let constants = [("TABLE", code(table.ty.dtype)), ("Y", code(target.dtype))];
            let n = shard.len() * width;
            let elements = (n, vectors(width, &[table.ty.dtype, target.dtype]), target.dtype);
            for part in self.row_shards(&[table])? {
                let params = [n as u32, width as u32, part.start as u32, part.end as u32, scale.to_bits()];
                let bindings = [rows(table, &part), rows(tokens, &shard), target.view];
                self.push_elements("embed", &constants, elements, &params, &bindings);
            }
            self.finish(target);
        }
        Ok(())
    }

    /// Fills memory with zeros.
    fn zeros(&mut self, view: View) {
        let words = view.bytes / 4;
        let params = [words as u32, 0f32.to_bits()];
        let n = (words, vectors(words, &[DType::F32]), DType::F32);
        self.push_elements("fill", &[("Y", code(DType::F32))], n, &params, &[view]);
    }

    pub(super) fn embed_grad(&mut self, op: &EmbedGrad) -> Result<(), String> {
        let (dy, tokens, table) = (self.input(0)?, self.input(1)?, self.output(0)?);
        for shard in self.element_shards(&[table])? {
            self.zeros(elements(table, &shard));
        }
        let width = width_of(dy);
        let padding = op.padding.unwrap_or(u32::MAX);
        let vectors = vectors(width, &[DType::F32]);
        let steps = width / vectors.max(1);
        let lanes = lanes_for(steps);
        let constants = [("LANES", lanes), ("VECTORS", vectors as u32)];
        // A row finds its token, then loops over all rows, and over its own columns in each.
        let most = rows_for_rounds(3 + steps.div_ceil(lanes as usize));
        for part in self.row_shards(&[table])? {
            let shards = self.row_shards(&[dy, tokens])?;
            for shard in shards.iter().flat_map(|shard| split(shard, most)) {
                let params =
                    [shard.len() as u32, steps as u32, part.start as u32, part.end as u32, padding, op.scale.to_bits()];
                let bindings = [rows(dy, &shard), rows(tokens, &shard), rows(table, &part)];
                self.push("embed_grad", &constants, &params, &bindings).groups(shard.len());
            }
        }
        Ok(())
    }

    pub(super) fn store_rows(&mut self) -> Result<(), String> {
        let (y, x, places) = (self.input(0)?, self.input(1)?, self.input(2)?);
        for part in self.row_shards(&[y])? {
            self.rows_to_places(x, places, &part, (rows(y, &part), y.ty.dtype))?;
        }
        Ok(())
    }

    /// Moves rows of x to their places among the rows `part` of a tensor, in a view.
    fn rows_to_places(
        &mut self,
        x: &Operand,
        places: &Operand,
        part: &Range<usize>,
        (view, dtype): (View, DType),
    ) -> Result<(), String> {
        let (width, types) = (width_of(x), [("X", code(x.ty.dtype)), ("Y", code(dtype))]);
        for shard in self.row_shards(&[x, places])? {
            let n = shard.len() * width;
            let params = [n as u32, width as u32, part.start as u32, part.end as u32];
            let bindings = [rows(x, &shard), rows(places, &shard), view];
            let elements = (n, vectors(width, &[x.ty.dtype, dtype]), dtype);
            self.push_elements("scatter_rows", &types, elements, &params, &bindings);
        }
        Ok(())
    }

    pub(super) fn scatter_rows(&mut self) -> Result<(), String> {
        let (x, places, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let width = width_of(x);
        for part in self.target_shards(y, width, &[])? {
            let target = self.target(y, &part, width)?;
            self.zeros(target.view);
            self.rows_to_places(x, places, &part, (target.view, target.dtype))?;
            self.finish(target);
        }
        Ok(())
    }
}
