use crate::bind::{Io, Kernel};
use crate::memory::{Floats, Need, Ptr, Scratch};
use crate::parallel::try_tasks;
use crate::real::{Matrix, Operand, Real};
use crate::simd::{simd, sum_lanes};
use sparta_graph::ops::{SampledGrad, Sampling};
use std::ops::Range;

/// The density from which `Sampling::Auto` computes whole tiles (measured, see benches/cpu_kernels.rs).
const TILED_FROM: f64 = 0.18;

pub fn prepare<T: Real>(op: &SampledGrad, io: &Io) -> Result<Kernel, String> {
    let ((t, rows), (_, columns), n) = (io.matrix(0)?, io.matrix(1)?, io.numel(2)?);
    let choice = Choice {
        size: [t, rows, columns],
        n,
        scale: T::from_f32(op.scale),
        dy: io.floats(0)?,
        x: io.floats(1)?,
        index: io.words(2)?,
        row_ptr: io.words(3)?,
        g: io.output(0)?,
    };
    let density = n as f64 / (rows as f64 * columns as f64);
    let tiled = match op.sampling {
        Sampling::Auto => density >= TILED_FROM,
        Sampling::Sampled => false,
        Sampling::Tiled => true,
    };
    let full = choice.dy.is_full() && choice.x.is_full();
    if tiled {
        let (rows, columns) = (TILE_ROWS, TILE_COLUMNS.min(columns));
        let converted = if full { 0 } else { DEPTH.min(t) * (rows + columns) };
        let per_thread = (rows * columns + converted) * size_of::<T>();
        return Ok(Kernel::new(Need { shared: 0, per_thread }, move |scratch| choice.tiled(scratch)));
    }
    let pieces = Pieces::of(choice.size);
    let (rows, columns) = (pieces.rows.min(ROWS), pieces.columns.min(COLUMNS));
    let strip = if full { 0 } else { SIDE * rows.max(columns) };
    let per_thread = ((rows + columns).saturating_mul(pieces.depth) + strip).saturating_mul(size_of::<T>());
    Ok(Kernel::new(Need { shared: 0, per_thread }, move |scratch| choice.sampled(pieces, scratch)))
}

/// The most rows of dy and x that are transposed at a time, so that each dot product runs over contiguous memory.
const DEPTH: usize = 512;
/// The most columns of dy that are transposed at a time.
const ROWS: usize = 4096;
/// The most columns of x that are transposed at a time: they are read in random order, from the second-level cache.
const COLUMNS: usize = 384;
const TILE_ROWS: usize = 128;
const TILE_COLUMNS: usize = 512;

/// How the sampled algorithm divides the weight: a piece for each thread, which transposes what it needs into memory of
/// its own. What is transposed together would go from core to core twice, which takes longer than transposing it.
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
struct Choice<T> {
    /// Rows of dy and x, rows and columns of the weight.
    size: [usize; 3],
    n: usize,
    scale: T,
    dy: Floats<T>,
    x: Floats<T>,
    index: Ptr<u32>,
    row_ptr: Ptr<u32>,
    g: Ptr<T>,
}

impl<T: Real> Choice<T> {
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
            _ => Err(format!("element {index} is chosen in row {row} of {columns} columns, where it does not lie")),
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
    fn piece(&self, rows: Range<usize>, columns: Range<usize>, depth: usize, scratch: Ptr<T>) -> Result<(), String> {
        let [t, all_rows, all_columns] = self.size;
        // At least once, so that g is written when there are no rows.
        for first in (0..t.max(1)).step_by(depth) {
            let deep = depth.min(t - first);
            let x_t = Ptr::new(scratch.at(rows.len() * deep));
            let strip = Ptr::new(x_t.at(columns.len().min(COLUMNS) * deep));
            let at = first * all_rows + rows.start;
            // SAFETY: the columns lie in dy; the scratch memory holds them, and behind them those of x and a strip.
            unsafe { transpose(self.dy, at, all_rows, [deep, rows.len()], scratch, strip) };
            for columns in split(columns.clone(), COLUMNS) {
                let at = first * all_columns + columns.start;
                // SAFETY: as above; nobody writes the transposed blocks while they are read.
                let x = unsafe {
                    transpose(self.x, at, all_columns, [deep, columns.len()], x_t, strip);
                    x_t.slice(0, columns.len() * deep)
                };
                for (i, row) in rows.clone().enumerate() {
                    // SAFETY: as above.
                    let dy = unsafe { scratch.slice(i * deep, deep) };
                    self.sampled_row(row, &columns, dy, x, first == 0)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the products over one block of depth to the chosen elements of a row in a range of columns; `start` them if
    /// it is the first.
    fn sampled_row(&self, row: usize, range: &Range<usize>, dy: &[T], x: &[T], start: bool) -> Result<(), String> {
        let (first, chosen) = self.row(row);
        let places = self.within(row, range);
        let mut at = first + places.start;
        for group in chosen[places].chunks(TOGETHER) {
            let mut columns = [dy; TOGETHER];
            for (column, &index) in columns.iter_mut().zip(group) {
                let from = self.column(row, range, index)? * dy.len();
                *column = &x[from..from + dy.len()];
            }
            let mut sums = [T::ZERO; TOGETHER];
            // SAFETY: safe code; the elements of g from `at` on belong to this row and range.
            unsafe {
                match group.len() {
                    1 => dots::<T, 1>(dy, &columns, &mut sums),
                    _ => dots::<T, TOGETHER>(dy, &columns, &mut sums),
                }
                for (g, &sum) in self.g.slice_mut(at, group.len()).iter_mut().zip(&sums) {
                    *g = self.scale * sum + if start { T::ZERO } else { *g };
                }
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
        let (width, first) = (tile_columns.len(), tile_columns.start);
        let dy_buffer = Ptr::new(scratch.at(tile_rows.len() * width));
        // What need not be converted is multiplied in one go; at least once, so that the tile is written.
        let depth = if self.dy.is_full() && self.x.is_full() { t } else { DEPTH }.max(1);
        for start in (0..t.max(1)).step_by(depth) {
            let deep = depth.min(t - start);
            let x_buffer = Ptr::new(dy_buffer.at(tile_rows.len() * deep));
            // SAFETY: the tile lies in the product; the scratch memory holds it and the converted rows behind it.
            unsafe {
                let dy = rows_of(self.dy, start * rows + tile_rows.start, rows, [deep, tile_rows.len()], dy_buffer);
                let x = rows_of(self.x, start * columns + first, columns, [deep, width], x_buffer);
                let tile = Matrix::rows(scratch.at(0), width);
                T::gemm([tile_rows.len(), width, deep], tile, start > 0, dy.transposed(), x, self.scale);
            }
        }
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

/// Side of the squares that are transposed in registers.
const SIDE: usize = 8;
/// Chosen elements of a row that are computed together, so that dy is loaded once for all of them.
const TOGETHER: usize = 4;
/// Partial sums of each.
const LANES: usize = 16;

/// A block of a matrix whose rows are `width` apart, from element `at` on: where it lies, or converted into `buffer`.
///
/// # Safety
/// The block lies in the tensor, and the buffer has room for it.
unsafe fn rows_of<T: Real>(x: Floats<T>, at: usize, width: usize, size: [usize; 2], buffer: Ptr<T>) -> Operand<T> {
    let [deep, columns] = size;
    if let Floats::Full(x) = x {
        return Operand::rows(x.at(at), width);
    }
    for i in 0..deep {
        // SAFETY: the caller vouches for it.
        unsafe { x.load(at + i * width, columns, buffer.at(i * columns)) };
    }
    Operand::rows(buffer.at(0), columns)
}

/// `y [columns, deep]` = the block `[deep, columns]` of x transposed, from element `at` on, the rows `width` apart. What
/// has to be converted goes through `strip`, a few rows at a time.
///
/// # Safety
/// The block lies in the tensor, y has room for it, and the strip for SIDE rows of it.
unsafe fn transpose<T: Real>(x: Floats<T>, at: usize, width: usize, size: [usize; 2], y: Ptr<T>, strip: Ptr<T>) {
    let [deep, columns] = size;
    if let Floats::Full(x) = x {
        // SAFETY: the caller vouches for it.
        return unsafe { transpose_rows(x.at(at), width, size, y.at(0), deep) };
    }
    for t in (0..deep).step_by(SIDE) {
        let rows = SIDE.min(deep - t);
        // SAFETY: the caller vouches for it.
        unsafe {
            (0..rows).for_each(|i| x.load(at + (t + i) * width, columns, strip.at(i * columns)));
            transpose_rows(strip.at(0), columns, [rows, columns], y.at(t), deep);
        }
    }
}

simd! {
    /// `y [columns, deep]` = `x [deep, columns]` transposed; the rows of x are `width` apart, those of y `stride`.
    unsafe fn transpose_rows<T: Real>(x: *const T, width: usize, size: [usize; 2], y: *mut T, stride: usize) {
        let [deep, columns] = size;
        let (whole_deep, whole_columns) = (deep / SIDE * SIDE, columns / SIDE * SIDE);
        for column in (0..whole_columns).step_by(SIDE) {
            for t in (0..whole_deep).step_by(SIDE) {
                let row = |i| x.add((t + i) * width + column).cast::<[T; SIDE]>().read_unaligned();
                let square = transposed([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
                for (i, line) in square.into_iter().enumerate() {
                    y.add((column + i) * stride + t).cast::<[T; SIDE]>().write_unaligned(line);
                }
            }
        }
        for column in 0..columns {
            let done = if column < whole_columns { whole_deep } else { 0 };
            for t in done..deep {
                *y.add(column * stride + t) = *x.add(t * width + column);
            }
        }
    }

    /// The products of `dy` with the first N of `columns`, all of one length.
    unsafe fn dots<T: Real, const N: usize>(dy: &[T], columns: &[&[T]; TOGETHER], sums: &mut [T; TOGETHER]) {
        let mut lanes = [[T::ZERO; LANES]; N];
        let whole = dy.len() / LANES * LANES;
        for t in (0..whole).step_by(LANES) {
            let block = |x: &[T]| x.as_ptr().add(t).cast::<[T; LANES]>().read_unaligned();
            let dy = block(dy);
            for i in 0..N {
                let x = block(columns[i]);
                for l in 0..LANES {
                    lanes[i][l] = dy[l].mul_add(x[l], lanes[i][l]);
                }
            }
        }
        for i in 0..N {
            let rest = dy[whole..].iter().zip(&columns[i][whole..]);
            sums[i] = sum_lanes(lanes[i]) + rest.fold(T::ZERO, |sum, (&dy, &x)| dy.mul_add(x, sum));
        }
    }
}

/// The transpose of a square of rows, as the three steps that vector units do it in: pairs, quadruples, halves.
#[inline(always)]
fn transposed<T: Real>(rows: [[T; SIDE]; SIDE]) -> [[T; SIDE]; SIDE] {
    let [a, b, c, d, e, f, g, h] = rows;
    let low = |x: [T; 8], y: [T; 8]| [x[0], y[0], x[1], y[1], x[4], y[4], x[5], y[5]];
    let high = |x: [T; 8], y: [T; 8]| [x[2], y[2], x[3], y[3], x[6], y[6], x[7], y[7]];
    let (ab, ab2, cd, cd2) = (low(a, b), high(a, b), low(c, d), high(c, d));
    let (ef, ef2, gh, gh2) = (low(e, f), high(e, f), low(g, h), high(g, h));
    let first = |x: [T; 8], y: [T; 8]| [x[0], x[1], y[0], y[1], x[4], x[5], y[4], y[5]];
    let second = |x: [T; 8], y: [T; 8]| [x[2], x[3], y[2], y[3], x[6], x[7], y[6], y[7]];
    let (p0, p1, p2, p3) = (first(ab, cd), second(ab, cd), first(ab2, cd2), second(ab2, cd2));
    let (q0, q1, q2, q3) = (first(ef, gh), second(ef, gh), first(ef2, gh2), second(ef2, gh2));
    let lower = |x: [T; 8], y: [T; 8]| [x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]];
    let upper = |x: [T; 8], y: [T; 8]| [x[4], x[5], x[6], x[7], y[4], y[5], y[6], y[7]];
    [
        lower(p0, q0),
        lower(p1, q1),
        lower(p2, q2),
        lower(p3, q3),
        upper(p0, q0),
        upper(p1, q1),
        upper(p2, q2),
        upper(p3, q3),
    ]
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
