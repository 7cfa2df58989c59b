//! linear: shards of both operands and of the result.

use super::product::{Epilogue, Factor, Product};
use super::{Lowering, Target, UNUSED, code, row_bytes, rows, split, width_of, words};
use sparta_graph::ops::{Layout, Linear};
use std::ops::Range;

/// Up to this many rows or columns of the result, a workgroup per dot product beats tiles.
const SMALL: usize = 8;

/// One dispatch: ranges of rows, columns and inner dimension of the product.
struct Piece<'r> {
    m: &'r Range<usize>,
    n: &'r Range<usize>,
    k: &'r Range<usize>,
}

impl Lowering<'_> {
    /// Stored rows of `b` are columns of the result for NT, and the inner dimension otherwise, over which dispatches
    /// accumulate in order.
    pub(super) fn linear(&mut self, op: &Linear) -> Result<(), String> {
        let (a, b, c) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let (m, n, k) = op.dims(&a.ty, &b.ty)?;
        let all = |length: usize| std::iter::once(0..length).collect::<Vec<_>>();
        let inner = match op.layout {
            Layout::Nt => all(k),
            Layout::Nn => self.shards(k, &[row_bytes(b)])?,
            Layout::Tn => self.shards(k, &[row_bytes(a), row_bytes(b)])?,
        };
        let columns = if op.layout == Layout::Nt { self.shards(n, &[row_bytes(b)])? } else { all(n) };
        // Sums over several dispatches are rounded once, and a dispatch must own the words that it writes.
        let pairs = columns.iter().all(|n| n.start.is_multiple_of(2) && n.end.is_multiple_of(2));
        let staged = c.ty.dtype.size() == 2 && (inner.len() > 1 || !pairs);
        let mut widths = vec![row_bytes(c)];
        widths.extend((op.layout != Layout::Tn).then(|| row_bytes(a)));
        widths.extend(staged.then_some(4 * n));
        let by_size = self.shards(m, &widths)?;
        let flops = 2 * m as u64 * n as u64 * k as u64 / (inner.len() * columns.len()).max(1) as u64;
        let parts = flops.div_ceil(self.bounds.flops).max(1) as usize;
        // A multiple of 128 rows keeps ranges aligned and tiles full.
        let most = m.div_ceil(parts).next_multiple_of(128).max(128);
        for m in by_size.iter().flat_map(|m| split(m, most)) {
            let target = if staged { self.staged(c, &m)? } else { self.target(c, &m, 2)? };
            for n in &columns {
                for k in &inner {
                    self.piece(op, &Piece { m: &m, n, k }, &target)?;
                }
            }
            self.finish(target);
        }
        Ok(())
    }

    fn piece(&mut self, op: &Linear, piece: &Piece, target: &Target) -> Result<(), String> {
        let (a, b, c) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let bias = if op.bias { Some(self.input(2)?) } else { None };
        let residual = op.residual_index().map(|i| self.input(i)).transpose()?;
        // The ranges of rows and columns of the operands as stored.
        let (a_rows, a_columns) = match op.layout {
            Layout::Nt => (piece.m, 0..width_of(a)),
            Layout::Nn => (piece.m, piece.k.clone()),
            Layout::Tn => (piece.k, piece.m.clone()),
        };
        let b_rows = if op.layout == Layout::Nt { piece.n } else { piece.k };
        let product = Product {
            layout: op.layout,
            a: Factor::new(a, a_rows, &a_columns),
            b: Factor::all_columns(b, b_rows),
            m: piece.m.len(),
            n: piece.n.len(),
            k: piece.k.len(),
        };
        let Product { m, n, .. } = product;
        let epilogue = Epilogue {
            c_stride: width_of(c),
            c_column: piece.n.start,
            scale: op.scale,
            accumulate: piece.k.start > 0,
            ..Epilogue::default()
        };
        let output = [
            bias.map_or(Ok(UNUSED), |bias| self.whole(bias, "bias"))?,
            residual.map_or(UNUSED, |residual| rows(residual, piece.m)),
            target.view,
        ];
        let constants = [
            ("TYPE_C", code(target.dtype)),
            ("BIAS", bias.map_or(0, |bias| 1 + code(bias.ty.dtype))),
            ("RESIDUAL", residual.map_or(0, |residual| 1 + code(residual.ty.dtype))),
        ];
        let tiling = self.tiling(&product);
        let params = Self::product_params(&product, &epilogue, &tiling);
        // With several tiles, matrix units are faster even where most of each tile is empty.
        let small = m <= SMALL || n <= SMALL && (m <= 64 || self.units(&product).is_none());
        if op.layout == Layout::Nt && small {
            let types = [("TYPE_A", code(a.ty.dtype)), ("TYPE_B", code(b.ty.dtype)), ("LANES", 64)];
            let bindings = [&[product.a.view, product.b.view], &output[..]].concat();
            self.push("linear_small", &[&types, &constants[..]].concat(), &params, &bindings)
                .groups(m.div_ceil(SMALL) * words(n, target.dtype));
        } else if tiling.pieces == 1 {
            self.push_tiles("linear", &constants, &product, (&tiling, &params), &output)?;
        } else {
            let partial = self.push_partial(&product, &tiling, &params)?;
            let bindings = [&[partial, UNUSED], &output[..]].concat();
            self.push("linear_sum", &constants, &params, &bindings).threads(m * n.div_ceil(4));
            self.used = partial.offset;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::lower::{Bounds, Step, lower};
    use sparta_graph::graph::TensorType;
    use sparta_graph::ops::{Layout, Linear};
    use sparta_graph::{Call, DeviceKind, Operand, Place};

    /// A product too long for one dispatch is split by rows that cover the whole result.
    #[test]
    fn long_products_are_split() {
        let operand = |i, shape: [usize; 2]| Operand { place: Place::External(i), ty: TensorType::f32(shape) };
        let call = Call {
            op: Linear::plain(Layout::Nt).into(),
            inputs: vec![operand(0, [1000, 64]), operand(1, [48, 64])],
            outputs: vec![operand(2, [1000, 48])],
            label: String::new(),
        };
        let bounds = Bounds { flops: 2 * 1000 * 48 * 64 / 3, ..Bounds::new(DeviceKind::Other, 1 << 27) };
        let mut end = 0;
        for step in lower(&call, bounds).unwrap().steps {
            let Step::Dispatch(dispatch) = step else { panic!("a copy") };
            assert!(2 * dispatch.params[0] as u64 * 48 * 64 <= bounds.flops + 2 * 128 * 48 * 64);
            let c = dispatch.bindings[4];
            assert_eq!((c.offset, c.bytes), (end, dispatch.params[0] as usize * 48 * 4));
            assert_eq!(dispatch.bindings[0].offset, end / 48 * 64);
            end += c.bytes;
        }
        assert_eq!(end, 1000 * 48 * 4);
    }
}
