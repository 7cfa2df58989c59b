//! Ops that move elements of a matrix.

use super::{Lowering, code, rows, rows_of, vectors, width_of};
use sparta_graph::ops::{Slice, Unslice};

/// Maps elements of the result to elements of x: see `shaders/moved.wgsl`.
struct Source {
    top: i64,
    left: i64,
    height: usize,
    width: usize,
    down: usize,
    across: usize,
}

impl Lowering<'_> {
    fn moved(&mut self, source: &Source) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let whole = self.whole(x, "x")?;
        let types = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
        let columns = width_of(y);
        let vectors = vectors(columns, &[x.ty.dtype, y.ty.dtype]);
        let whole_steps = [source.left.unsigned_abs() as usize, source.width, source.down];
        let streams = source.across == 1 && x.ty.numel() > 0 && whole_steps.iter().all(|n| n.is_multiple_of(vectors));
        let vectors = if streams { vectors } else { 0 };
        for shard in self.row_shards(&[y])? {
            let n = shard.len() * columns;
            let sizes = [source.height, source.width, source.down, source.across].map(|x| x as u32);
            let begin =
                [n as u32, shard.start as u32, columns as u32, source.top as i32 as u32, source.left as i32 as u32];
            let params = [&begin[..], &sizes].concat();
            self.push_elements("moved", &types, (n, vectors, y.ty.dtype), &params, &[whole, rows(y, &shard)]);
        }
        Ok(())
    }

    pub(super) fn broadcast(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let row = usize::from(x.ty.shape.len() == 1);
        let (height, width) = (rows_of(y), width_of(y));
        self.moved(&Source { top: 0, left: 0, height, width, down: 1 - row, across: row })
    }

    pub(super) fn transpose(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let (height, width) = (rows_of(y), width_of(y));
        self.moved(&Source { top: 0, left: 0, height, width, down: 1, across: width_of(x) })
    }

    pub(super) fn slice(&mut self, op: &Slice) -> Result<(), String> {
        let x = self.input(0)?;
        let (top, left) = (op.rows[0] as i64, op.columns[0] as i64);
        self.moved(&Source { top, left, height: rows_of(x), width: width_of(x), down: width_of(x), across: 1 })
    }

    pub(super) fn unslice(&mut self, op: &Unslice) -> Result<(), String> {
        let x = self.input(0)?;
        let (top, left) = (-(op.at[0] as i64), -(op.at[1] as i64));
        self.moved(&Source { top, left, height: rows_of(x), width: width_of(x), down: width_of(x), across: 1 })
    }
}
