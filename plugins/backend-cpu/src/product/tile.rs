//! The product of one tile.

use super::Output;
use super::isa::{Isa, round};
use crate::memory::Ptr;
use half::bf16;
use std::mem::MaybeUninit;

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
    /// `to` and `start.add` are stored transposed: `stride` lies between columns.
    pub transposed: bool,
}

/// Multiplies a tile of `S::ROWS` rows and `vectors` vectors of columns; only those in `part` exist.
///
/// # Safety
/// `a` and `b` hold `pairs` pairs of the tile, `finish` the memory of the part, and the processor has the instructions
/// of `S`.
#[inline(always)]
pub unsafe fn multiply<S: Isa>(vectors: usize, pairs: usize, a: Rows, b: *const u32, finish: &Finish, part: Part) {
    let Finish { scale, start, to, stride, transposed } = *finish;
    // SAFETY: the caller vouches for it; the sums have room for every tile.
    unsafe {
        let whole = part.rows == S::ROWS && part.columns == vectors * S::LANES;
        if whole && start.bias.is_none() && !transposed {
            let add = start.add.map(|(add, stride)| (add.offset(part.row * stride + part.column), stride));
            let end = End { scale, add, to: to.offset(part.row * stride + part.column), stride };
            return whole_tile::<S>(vectors, pairs, a, b, end);
        }
        let mut sums = MaybeUninit::<[f32; HEIGHT * WIDTH]>::uninit();
        let to = Output::F32(Ptr::new(sums.as_mut_ptr().cast()));
        whole_tile::<S>(vectors, pairs, a, b, End { scale, add: None, to, stride: WIDTH });
        for row in 0..part.rows {
            let sums = sums.as_ptr().cast::<f32>().add(row * WIDTH);
            let sums = std::slice::from_raw_parts(sums, part.columns);
            finish_row(sums, finish, part.row + row, part.column);
        }
    }
}

/// Where the sums of a whole tile go: `to = scale * sum + add`.
#[derive(Clone, Copy)]
struct End {
    scale: f32,
    /// With the elements between its rows.
    add: Option<(Output, usize)>,
    to: Output,
    stride: usize,
}

/// What a tile is added to.
const NOTHING: u8 = 0;
const F32: u8 = 1;
const BF16: u8 = 2;

/// Chooses the code for the width of the tile and the types at its end.
///
/// # Safety
/// As for [`multiply`], of a tile that lies in c as a whole.
#[inline(always)]
unsafe fn whole_tile<S: Isa>(vectors: usize, pairs: usize, a: Rows, b: *const u32, end: End) {
    macro_rules! choose {
        ($($vectors:pat => $n:literal,)*) => {
            match vectors {
                $($vectors => match (end.add.map(|(add, _)| add), end.to) {
                    (None, Output::F32(_)) => tile::<S, $n, NOTHING, F32>(pairs, a, b, end),
                    (None, Output::Bf16(_)) => tile::<S, $n, NOTHING, BF16>(pairs, a, b, end),
                    (Some(Output::F32(_)), Output::F32(_)) => tile::<S, $n, F32, F32>(pairs, a, b, end),
                    (Some(Output::F32(_)), Output::Bf16(_)) => tile::<S, $n, F32, BF16>(pairs, a, b, end),
                    (Some(Output::Bf16(_)), Output::F32(_)) => tile::<S, $n, BF16, F32>(pairs, a, b, end),
                    (Some(Output::Bf16(_)), Output::Bf16(_)) => tile::<S, $n, BF16, BF16>(pairs, a, b, end),
                },)*
            }
        };
    }
    // SAFETY: the caller vouches for it.
    unsafe {
        choose! {
            1 => 1,
            2 => 2,
            _ => 3,
        }
    }
}

/// A tile of `S::ROWS` rows by N vectors.
///
/// No branches: otherwise the compiler does not unroll the loops, the sums live on the stack, and each step of the
/// inner loop ends in a store (a third of the rate).
///
/// # Safety
/// As for [`whole_tile`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Counted loops are what the compiler unrolls.
unsafe fn tile<S: Isa, const N: usize, const ADD: u8, const TO: u8>(pairs: usize, a: Rows, b: *const u32, end: End) {
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
        let (add, add_stride) = end.add.map_or((std::ptr::null(), 0), |(add, stride)| (add.address(), stride));
        let (to, scale) = (end.to.address(), S::broadcast(end.scale));
        for r in 0..S::ROWS {
            for v in 0..N {
                let mut x = S::multiply(lanes[r][v], scale);
                let at = r * add_stride + v * S::LANES;
                match ADD {
                    F32 => x = S::add(x, S::load(add.cast::<f32>().add(at))),
                    BF16 => x = S::add(x, S::load_bf16(add.cast::<u16>().add(at))),
                    _ => {}
                }
                let at = r * end.stride + v * S::LANES;
                match TO {
                    BF16 => S::store_bf16(to.cast::<u16>().add(at), x),
                    _ => S::store(to.cast::<f32>().add(at), x),
                }
            }
        }
    }
}

/// Part of a row of c from its sums, already scaled.
///
/// # Safety
/// As for [`multiply`].
unsafe fn finish_row(sums: &[f32], finish: &Finish, row: usize, column: usize) {
    let Start { bias, add } = finish.start;
    for (i, &sum) in sums.iter().enumerate() {
        let column = column + i;
        let place = |stride: usize| if finish.transposed { column * stride + row } else { row * stride + column };
        // SAFETY: the caller vouches for the memory of the row.
        unsafe {
            let bias = bias.map(|bias| *bias.at(column));
            let add = add.map(|(add, stride)| add.get(place(stride)));
            let x = match (bias, add) {
                (Some(bias), Some(add)) => sum + (bias + add),
                (Some(start), None) | (None, Some(start)) => sum + start,
                (None, None) => sum,
            };
            match finish.to {
                Output::F32(c) => *c.at(place(finish.stride)) = x,
                Output::Bf16(c) => *c.at(place(finish.stride)) = bf16::from_bits(round(x)),
            }
        }
    }
}
