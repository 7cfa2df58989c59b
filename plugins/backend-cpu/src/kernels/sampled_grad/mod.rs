//! The gradient of a weight at chosen elements. Two algorithms: a dot product per element, or whole tiles of the dense
//! gradient, of which the chosen elements are kept.

mod numbers;
mod pairs;

use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr, Scratch};
use crate::parallel::try_tasks;
use crate::product::Unit;
use crate::real::Real;
use numbers::Numbers;
use pairs::Pairs;
use sparta_graph::ops::{SampledGrad, Sampling};
use std::ops::Range;

/// The density from which `Sampling::Auto` computes whole tiles (measured, see benches/cpu_kernels.rs).
const TILED_FROM: f64 = 0.18;

/// How the operands are held while they are multiplied. A line is a column of dy or x: what one dot product reads.
trait Lines<T: Real>: Copy + Send + Sync + 'static {
    type Element: Copy;

    /// Elements of a line of `deep` rows.
    fn line(&self, deep: usize) -> usize;

    /// Elements of scratch memory that transposing this many columns needs.
    fn strip(&self, columns: usize) -> usize;

    /// Writes the lines of a block `[deep, columns]` of dy, whose rows are `width` apart, from element `at` on.
    ///
    /// # Safety
    /// The block is in the tensor, and `to` and `strip` have room for it.
    unsafe fn lines_of_dy(
        &self,
        at: usize,
        width: usize,
        size: [usize; 2],
        to: Ptr<Self::Element>,
        strip: Ptr<Self::Element>,
    );

    /// [`Lines::lines_of_dy`] for x.
    ///
    /// # Safety
    /// As there.
    unsafe fn lines_of_x(
        &self,
        at: usize,
        width: usize,
        size: [usize; 2],
        to: Ptr<Self::Element>,
        strip: Ptr<Self::Element>,
    );

    /// The products of `dy` with each of at most [`TOGETHER`] columns, all of one length.
    fn dots(&self, dy: &[Self::Element], columns: &[&[Self::Element]]) -> [T; TOGETHER];

    /// Bytes of scratch memory for a tile of t, rows and columns.
    fn tile_scratch(&self, size: [usize; 3]) -> usize;

    /// A tile `[rows, columns]` of `scale * dy^T x`, dense: from elements `at` of dy and x on, which have rows `widths`
    /// apart.
    ///
    /// # Safety
    /// The operands are in their tensors, `to` has room for the tile, and `scratch` the bytes of
    /// [`Lines::tile_scratch`], aligned to 64.
    unsafe fn tile(
        &self,
        size: [usize; 3],
        at: [usize; 2],
        widths: [usize; 2],
        scale: f32,
        to: Ptr<T>,
        scratch: Ptr<u8>,
    );
}

/// Chosen elements of a row that are computed together, so that dy is loaded once for all of them.
const TOGETHER: usize = 4;
/// Partial sums of each.
const LANES: usize = 16;

pub fn prepare<T: Real>(op: &SampledGrad, io: &Io) -> Result<Kernel, String> {
    let (dy, x) = (io.floats::<T>(0)?, io.floats::<T>(1)?);
    match (dy, x, T::single(io.float_output(0)?)) {
        (Floats::Bf16(dy), Floats::Bf16(x), Some(Floats::Full(g))) => {
            prepare_with(op, io, Pairs { dy, x, unit: Unit::best() }, g)
        }
        _ => prepare_with(op, io, Numbers { dy, x }, io.output(0)?),
    }
}

fn prepare_with<T: Real, L: Lines<T>>(op: &SampledGrad, io: &Io, lines: L, g: Ptr<T>) -> Result<Kernel, String> {
    let ((t, rows), (_, columns), n) = (io.matrix(0)?, io.matrix(1)?, io.numel(2)?);
    let size = [t, rows, columns];
    let choice = Choice { size, n, scale: op.scale, lines, index: io.words(2)?, row_ptr: io.words(3)?, g };
    let density = n as f64 / (rows as f64 * columns as f64);
    let tiled = match op.sampling {
        Sampling::Auto => density >= TILED_FROM,
        Sampling::Sampled => false,
        Sampling::Tiled => true,
    };
    if tiled {
        let [rows, columns] = [TILE_ROWS.min(rows), TILE_COLUMNS.min(columns)];
        let per_thread = tile_bytes::<T>(rows, columns) + lines.tile_scratch([t, rows, columns]);
        return Ok(Kernel::new(Need { shared: 0, per_thread }, move |scratch| choice.tiled(scratch)));
    }
    let pieces = Pieces::of(size);
    let (rows, columns) = (pieces.rows.min(ROWS), pieces.columns.min(COLUMNS));
    let elements = (rows + columns).saturating_mul(lines.line(pieces.depth)) + lines.strip(rows.max(columns));
    let per_thread = elements.saturating_mul(size_of::<L::Element>());
    Ok(Kernel::new(Need { shared: 0, per_thread }, move |scratch| choice.sampled(pieces, scratch)))
}

/// Bytes of a tile in scratch memory; what follows it is aligned.
fn tile_bytes<T>(rows: usize, columns: usize) -> usize {
    (rows * columns * size_of::<T>()).next_multiple_of(64)
}

/// The most rows of dy and x that are transposed at a time, so that each dot product runs over contiguous memory.
const DEPTH: usize = 512;
/// The most columns of dy that are transposed at a time.
const ROWS: usize = 4096;
/// The most columns of x that are transposed at a time: they are read in random order, from the second-level cache.
const COLUMNS: usize = 384;
const TILE_ROWS: usize = 128;
const TILE_COLUMNS: usize = 512;

/// How the sampled algorithm divides the weight: a piece for each thread, which transposes what it needs into its own
/// memory. What is transposed together would go from core to core twice, which takes longer than transposing it.
#[derive(Clone, Copy)]
struct Pieces {
    rows: usize,
    columns: usize,
    /// Rows of dy and x that are transposed at a time; they depend on the shape alone, as the order of the sums does.
    depth: usize,
}

impl Pieces {
    /// The grid whose pieces have the smallest sides.
    fn of([t, rows, columns]: [usize; 3]) -> Pieces {
        let threads = rayon::current_num_threads();
        let grids = (1..=threads).filter(|down| threads.is_multiple_of(*down));
        let pieces = grids.map(|down| [rows.div_ceil(down), columns.div_ceil(threads / down)]);
        let [rows, columns] = pieces.min_by_key(|[r, c]| r + c).unwrap_or([rows, columns]).map(|side| side.max(1));
        let depth = t.div_ceil(t.div_ceil(DEPTH).max(1)).next_multiple_of(LANES).max(LANES);
        Pieces { rows, columns, depth }
    }
}

#[derive(Clone, Copy)]
struct Choice<T, L> {
    /// Rows of dy and x, rows and columns of the weight.
    size: [usize; 3],
    n: usize,
    scale: f32,
    lines: L,
    index: Ptr<u32>,
    row_ptr: Ptr<u32>,
    g: Ptr<T>,
}

impl<T: Real, L: Lines<T>> Choice<T, L> {
    /// Errors: row pointers that do not divide the chosen elements among the rows.
    fn check(&self) -> Result<(), String> {
        let rows = self.size[1];
        // SAFETY: row_ptr is u32 `[rows + 1]`, and the op does not write it.
        let ptr = unsafe { self.row_ptr.slice(0, rows + 1) };
        if ptr[0] == 0 && ptr[rows] as usize == self.n && ptr.is_sorted() {
            return Ok(());
        }
        Err(format!("row_ptr must ascend from 0 to the number of chosen elements, {}", self.n))
    }

    /// The first of the chosen elements of a row, and their indices.
    fn row(&self, row: usize) -> (usize, &[u32]) {
        // SAFETY: `check` has found that the row pointers ascend and end at the length of the index.
        unsafe {
            let (start, end) = (*self.row_ptr.at(row) as usize, *self.row_ptr.at(row + 1) as usize);
            (start, self.index.slice(start, end - start))
        }
    }

    /// The column of a chosen element of a row, counted from the start of the range in which it should lie.
    #[inline(always)]
    fn column(&self, row: usize, range: &Range<usize>, index: u32) -> Result<usize, String> {
        let columns = self.size[2];
        match (index as usize).checked_sub(row * columns) {
            Some(column) if range.contains(&column) => Ok(column - range.start),
            Some(column) if column < columns => Err(format!("the indices of row {row} do not ascend")),
            _ => Err(format!(
                "element {index} is chosen in row {row}, but lies outside of it; rows have {columns} columns"
            )),
        }
    }

    /// The places in [`row`](Self::row) of the chosen elements of a row that lie in a range of columns. The first and
    /// the last range take what lies outside of the row, so that it is reported.
    fn within(&self, row: usize, range: &Range<usize>) -> Range<usize> {
        let (columns, (_, chosen)) = (self.size[2], self.row(row));
        let before = |column: usize| chosen.partition_point(|&index| (index as usize) < row * columns + column);
        let start = if range.start == 0 { 0 } else { before(range.start) };
        start..if range.end == columns { chosen.len() } else { before(range.end) }
    }

    fn sampled(&self, pieces: Pieces, scratch: &Scratch) -> Result<(), String> {
        self.check()?;
        let [_, rows, columns] = self.size;
        let (down, across) = (rows.div_ceil(pieces.rows), columns.div_ceil(pieces.columns));
        try_tasks(down * across, |task| {
            let (row, column) = (task / across * pieces.rows, task % across * pieces.columns);
            let of_columns = column..columns.min(column + pieces.columns);
            for of_rows in split(row..rows.min(row + pieces.rows), ROWS) {
                self.piece(of_rows, of_columns.clone(), pieces.depth, scratch.thread())?;
            }
            Ok(())
        })
    }

    /// The chosen elements of a piece of the weight.
    fn piece(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        depth: usize,
        scratch: Ptr<L::Element>,
    ) -> Result<(), String> {
        let [t, all_rows, all_columns] = self.size;
        // At least once, so that g is written when there are no rows.
        for first in (0..t.max(1)).step_by(depth) {
            let deep = depth.min(t - first);
            let line = self.lines.line(deep);
            let x_lines = Ptr::new(scratch.at(rows.len() * line));
            let strip = Ptr::new(x_lines.at(columns.len().min(COLUMNS) * line));
            let at = first * all_rows + rows.start;
            // SAFETY: the columns lie in dy; the scratch memory holds them, and after them those of x and a strip.
            unsafe { self.lines.lines_of_dy(at, all_rows, [deep, rows.len()], scratch, strip) };
            for columns in split(columns.clone(), COLUMNS) {
                let at = first * all_columns + columns.start;
                // SAFETY: as above; nobody writes the lines while they are read.
                let x = unsafe {
                    self.lines.lines_of_x(at, all_columns, [deep, columns.len()], x_lines, strip);
                    x_lines.slice(0, columns.len() * line)
                };
                for (i, row) in rows.clone().enumerate() {
                    // SAFETY: as above.
                    let dy = unsafe { scratch.slice(i * line, line) };
                    self.sampled_row(row, &columns, dy, x, first == 0)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the products over one block of depth to the chosen elements of a row in a range of columns; `start` them if
    /// it is the first.
    fn sampled_row(
        &self,
        row: usize,
        range: &Range<usize>,
        dy: &[L::Element],
        x: &[L::Element],
        start: bool,
    ) -> Result<(), String> {
        let (first, chosen) = self.row(row);
        let places = self.within(row, range);
        let (mut at, scale) = (first + places.start, T::from_f32(self.scale));
        for group in chosen[places].chunks(TOGETHER) {
            let mut columns = [dy; TOGETHER];
            for (column, &index) in columns.iter_mut().zip(group) {
                let from = self.column(row, range, index)? * dy.len();
                *column = &x[from..from + dy.len()];
            }
            let sums = self.lines.dots(dy, &columns[..group.len()]);
            // SAFETY: the elements of g from `at` on belong to this row and range.
            let g = unsafe { self.g.slice_mut(at, group.len()) };
            for (g, &sum) in g.iter_mut().zip(&sums) {
                *g = scale * sum + if start { T::ZERO } else { *g };
            }
            at += group.len();
        }
        Ok(())
    }

    fn tiled(&self, scratch: &Scratch) -> Result<(), String> {
        self.check()?;
        let [_, rows, columns] = self.size;
        let (down, across) = (rows.div_ceil(TILE_ROWS), columns.div_ceil(TILE_COLUMNS));
        try_tasks(down * across, |task| {
            let (row, column) = (task / across * TILE_ROWS, task % across * TILE_COLUMNS);
            self.tile(row..rows.min(row + TILE_ROWS), column..columns.min(column + TILE_COLUMNS), scratch.thread())
        })
    }

    /// Computes the tile of the dense gradient in scratch memory and keeps what is chosen of it.
    fn tile(&self, tile_rows: Range<usize>, tile_columns: Range<usize>, scratch: Ptr<T>) -> Result<(), String> {
        let [t, rows, columns] = self.size;
        let width = tile_columns.len();
        let rest = Ptr::new(scratch.at(0).cast::<u8>().wrapping_add(tile_bytes::<T>(tile_rows.len(), width)));
        let (size, at) = ([t, tile_rows.len(), width], [tile_rows.start, tile_columns.start]);
        // SAFETY: the tile lies in the product; the scratch memory holds it, and after it what the lines need.
        unsafe { self.lines.tile(size, at, [rows, columns], self.scale, scratch, rest) };
        for (r, row) in tile_rows.enumerate() {
            let (start, chosen) = self.row(row);
            for i in self.within(row, &tile_columns) {
                let column = self.column(row, &tile_columns, chosen[i])?;
                // SAFETY: an element of the tile; element `start + i` of g belongs to this row and tile.
                unsafe { *self.g.at(start + i) = *scratch.at(r * width + column) };
            }
        }
        Ok(())
    }
}

/// A range in pieces of at most `size`.
fn split(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, check, check_bf16, error};
    use sparta_graph::DType;

    fn inputs([t, rows, columns]: [usize; 3], stride: usize) -> Vec<Tensor> {
        let index: Vec<u32> = (0..rows * columns).step_by(stride).map(|i| i as u32).collect();
        let ptr = |row: usize| index.partition_point(|&i| (i as usize) < row * columns) as u32;
        let row_ptr: Vec<u32> = (0..=rows).map(ptr).collect();
        vec![
            Tensor::random(DType::F32, &[t, rows], 1),
            Tensor::random(DType::F32, &[t, columns], 2),
            Tensor::u32(&[index.len()], &index),
            Tensor::u32(&[rows + 1], &row_ptr),
        ]
    }

    #[test]
    fn both_algorithms() {
        for (size, stride) in [
            ([1, 1, 1], 1),
            ([5, 3, 7], 2),
            ([40, 70, 600], 13),
            ([600, 17, 33], 1),
            ([0, 4, 4], 3),
            ([9, 40, 50], 1777),
        ] {
            let inputs = inputs(size, stride);
            let (dy, x, [t, rows, columns]) = (inputs[0].values(), inputs[1].values(), size);
            let of = |&i: &u32| {
                let (r, c) = (i as usize / columns, i as usize % columns);
                0.5 * (0..t).map(|t| dy[t * rows + r] * x[t * columns + c]).sum::<f64>()
            };
            let expected: Vec<f64> = inputs[2].words().iter().map(of).collect();
            for sampling in [Sampling::Auto, Sampling::Sampled, Sampling::Tiled] {
                let op = SampledGrad { scale: 0.5, sampling };
                check(op.clone(), &inputs, std::slice::from_ref(&expected), 2e-6);
                for which in [&[0][..], &[1], &[0, 1]] {
                    check_bf16(op.clone(), &inputs, which, 2e-6);
                }
            }
        }
    }

    #[test]
    fn bad_indices_are_refused() {
        let good = inputs([2, 3, 4], 5);
        for sampling in [Sampling::Sampled, Sampling::Tiled] {
            let op = SampledGrad { scale: 1.0, sampling };
            let with = |i: usize, words: &[u32]| {
                let mut inputs = good.clone();
                inputs[i] = Tensor::u32(&[words.len()], words);
                inputs
            };
            assert!(error(op.clone(), &with(2, &[0, 5, 12])).contains("element 12"));
            assert!(error(op.clone(), &with(2, &[0, 3, 10])).contains("element 3"));
            assert!(error(op.clone(), &with(3, &[0, 1, 2, 4])).contains("row_ptr"));
            assert!(error(op.clone(), &with(3, &[0, 3, 2, 3])).contains("row_ptr"));
        }
    }
}
