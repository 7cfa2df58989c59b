//! The product of one tile.

use super::Output;
use super::isa::{Isa, round};
use crate::memory::Ptr;
use half::bf16;

/// The rows and columns of the largest tile.
pub const HEIGHT: usize = 8;
pub const WIDTH: usize = 48;

/// Rows of a: the pair p of row r is the 4 bytes at `r * row + p * pair`.
#[derive(Clone, Copy)]
pub struct Rows {
    pub at: *const u8,
    pub row: usize,
    pub pair: usize,
}

/// The part of c that a tile covers.
#[derive(Clone, Copy)]
pub struct Part {
    pub row: usize,
    pub rows: usize,
    pub column: usize,
    pub columns: usize,
}

/// What the sums are added to: `bias[column] + add[row, column]`, either of which may be missing.
#[derive(Clone, Copy)]
pub struct Start {
    pub bias: Option<Ptr<f32>>,
    /// With the elements between its rows.
    pub add: Option<(Output, usize)>,
}

/// What becomes of the sums: `to = scale * sum + start`.
#[derive(Clone, Copy)]
pub struct Finish {
    pub scale: f32,
    pub start: Start,
    pub to: Output,
    /// Elements between rows of `to`.
    pub stride: usize,
}

/// Multiplies a tile of `S::ROWS` rows and so many vectors of columns, of which those of `part` exist.
///
/// # Safety
/// `a` and `b` hold `pairs` pairs of the tile, `finish` the memory of the part, and the processor has the instructions
/// of `S`.
#[inline(always)]
pub unsafe fn multiply<S: Isa>(vectors: usize, pairs: usize, a: Rows, b: *const u32, finish: &Finish, part: Part) {
    let mut sums = [0.0; HEIGHT * WIDTH];
    // SAFETY: the caller vouches for it; the sums have room for every tile.
    unsafe {
        match vectors {
            1 => tile::<S, 1>(pairs, a, b, sums.as_mut_ptr()),
            2 if S::VECTORS >= 2 => tile::<S, 2>(pairs, a, b, sums.as_mut_ptr()),
            _ => tile::<S, 3>(pairs, a, b, sums.as_mut_ptr()),
        }
        for row in 0..part.rows {
            finish_row::<S>(&sums[row * WIDTH..(row + 1) * WIDTH], finish, Part { row: part.row + row, ..part });
        }
    }
}

/// The sums of `S::ROWS` rows by N vectors, [`WIDTH`] apart in `sums`.
///
/// Whole vectors only, and no branches: otherwise the compiler does not unroll the loops, the sums live on the stack,
/// and each step of the inner loop ends in a store (a third of the rate).
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Counted loops are what the compiler unrolls.
unsafe fn tile<S: Isa, const N: usize>(pairs: usize, a: Rows, b: *const u32, sums: *mut f32) {
    // SAFETY: the caller vouches for it.
    unsafe {
        let mut lanes = [[S::zero(); N]; HEIGHT];
        let (mut at, mut b) = (a.at, b);
        for _ in 0..pairs {
            let columns: [S::Pairs; N] = std::array::from_fn(|v| S::pairs(b.add(v * S::LANES)));
            for r in 0..S::ROWS {
                let row = S::splat(at.add(r * a.row).cast());
                for v in 0..N {
                    lanes[r][v] = S::dot(lanes[r][v], row, columns[v]);
                }
            }
            at = at.add(a.pair);
            b = b.add(N * S::LANES);
        }
        for r in 0..S::ROWS {
            for v in 0..N {
                S::store(sums.add(r * WIDTH + v * S::LANES), lanes[r][v]);
            }
        }
    }
}

/// One row of a tile from its sums to c.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn finish_row<S: Isa>(sums: &[f32], finish: &Finish, part: Part) {
    let Start { bias, add } = finish.start;
    let bias = bias.map(|bias| bias.at(part.column).cast_const());
    let add = add.map(|(add, stride)| (add, part.row * stride + part.column));
    let to = part.row * finish.stride + part.column;
    let whole = part.columns / S::LANES * S::LANES;
    // SAFETY: the caller vouches for the memory of the row, of which `part.columns` elements exist.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let mut x = S::multiply(S::load(sums.as_ptr().add(i)), S::broadcast(finish.scale));
            let add = add.map(|(add, at)| match add {
                Output::F32(y) => S::load(y.at(at + i)),
                Output::Bf16(y) => S::load_bf16(y.at(at + i).cast()),
            });
            match (bias, add) {
                (Some(bias), Some(add)) => x = S::add(x, S::add(S::load(bias.add(i)), add)),
                (Some(bias), None) => x = S::add(x, S::load(bias.add(i))),
                (None, Some(add)) => x = S::add(x, add),
                (None, None) => {}
            }
            match finish.to {
                Output::F32(c) => S::store(c.at(to + i), x),
                Output::Bf16(c) => S::store_bf16(c.at(to + i).cast(), x),
            }
        }
        for (i, sum) in sums.iter().enumerate().take(part.columns).skip(whole) {
            let mut x = sum * finish.scale;
            let add = add.map(|(add, at)| match add {
                Output::F32(y) => *y.at(at + i),
                Output::Bf16(y) => (*y.at(at + i)).to_f32(),
            });
            match (bias, add) {
                (Some(bias), Some(add)) => x += *bias.add(i) + add,
                (Some(bias), None) => x += *bias.add(i),
                (None, Some(add)) => x += add,
                (None, None) => {}
            }
            match finish.to {
                Output::F32(c) => *c.at(to + i) = x,
                Output::Bf16(c) => *c.at(to + i) = bf16::from_bits(round(x)),
            }
        }
    }
}
