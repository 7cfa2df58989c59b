//! Matrix products of bf16 operands with f32 sums: `c = scale * a b + bias + residual`.
//!
//! Every element of c is one chain of fused multiply-adds over k, in pairs, the odd element of a pair first: what
//! `vdpbf16ps` computes. Other instruction sets add in the same order, so that all of them give the same bits, for any
//! number of threads and any blocking. Only [`DEPTH`] shows in the bits: beyond it a new chain starts, and the chains
//! are added in f32. Subnormal numbers count as zero, as the instruction takes them.

mod isa;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use crate::memory::{Floats, Ptr};
use crate::parallel::tasks;
use half::bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) use isa::x86;
pub(crate) use isa::{Isa, Plain, Unit, for_units};
pub(crate) use pack::{Source, lines};
use std::ops::Range;
use tile::{Finish, Start};

/// The longest chain of additions, in elements of k: a panel of b then stays in the second-level cache.
pub const DEPTH: usize = 2048;
/// Approximate elements of an operand that are packed at a time.
const PACKED: usize = 4 << 20;
/// The approximate part of c in one piece of work.
const ROWS: usize = 64;
const COLUMNS: usize = 384;
/// Rows of a and columns of b that one piece of work packs.
const PACKED_ROWS: usize = 64;
const PACKED_COLUMNS: usize = 96;
/// Multiplications below which threads cost more than they save.
const WORTH_THREADS: usize = 1 << 19;

/// A bf16 matrix: `a [m, k]` or `b [k, n]`.
#[derive(Clone, Copy)]
pub struct Operand {
    at: Ptr<bf16>,
    /// Elements between neighbouring lines, which are rows or columns.
    stride: usize,
    /// Whether a line runs along k: a row of a, a column of b.
    along_k: bool,
}

impl Operand {
    /// `a [m, k]` or `b [n, k]` as stored, rows `stride` elements apart.
    pub fn along_k(at: Ptr<bf16>, stride: usize) -> Operand {
        Operand { at, stride, along_k: true }
    }

    /// `a [k, m]` or `b [k, n]` as stored, rows `stride` elements apart.
    pub fn across_k(at: Ptr<bf16>, stride: usize) -> Operand {
        Operand { at, stride, along_k: false }
    }

    /// The address of element `k` of row or column `i`.
    fn at(&self, i: usize, k: usize) -> *const bf16 {
        let (line, place) = if self.along_k { (i, k) } else { (k, i) };
        self.at.at(line * self.stride + place)
    }
}

/// Where c goes, and what it is added to. A bf16 c is rounded once, from the f32 sum.
#[derive(Clone, Copy)]
pub enum Output {
    F32(Ptr<f32>),
    Bf16(Ptr<bf16>),
}

impl Output {
    /// None for a tensor of f16.
    pub fn of(tensor: Floats<f32>) -> Option<Output> {
        match tensor {
            Floats::Full(x) => Some(Output::F32(x)),
            Floats::Bf16(x) => Some(Output::Bf16(x)),
            Floats::F16(_) => None,
        }
    }

    /// From element `i` on.
    fn offset(self, i: usize) -> Output {
        match self {
            Output::F32(x) => Output::F32(Ptr::new(x.at(i))),
            Output::Bf16(x) => Output::Bf16(Ptr::new(x.at(i))),
        }
    }

    fn address(self) -> *mut u8 {
        match self {
            Output::F32(x) => x.at(0).cast(),
            Output::Bf16(x) => x.at(0).cast(),
        }
    }

    /// Element `i`.
    ///
    /// # Safety
    /// It lies in the tensor, and nothing else writes it concurrently.
    unsafe fn get(self, i: usize) -> f32 {
        // SAFETY: the caller vouches for it.
        unsafe {
            match self {
                Output::F32(x) => *x.at(i),
                Output::Bf16(x) => (*x.at(i)).to_f32(),
            }
        }
    }
}

/// A product with all its operands.
#[derive(Clone, Copy)]
pub struct Product {
    pub unit: Unit,
    /// m, n, k
    pub size: [usize; 3],
    pub a: Operand,
    pub b: Operand,
    pub c: Output,
    /// Elements between rows of c, and of the residual.
    pub stride: usize,
    pub scale: f32,
    /// `[n]`
    pub bias: Option<Floats<f32>>,
    /// `[m, n]`, f32 or bf16; may be the memory of c.
    pub residual: Option<Output>,
    /// c and the residual are stored `[n, m]`.
    pub transposed: bool,
}

/// The scratch memory of a product, as 4-byte words: packed a, packed b, the bias, the sums of earlier passes.
struct Space {
    a: Ptr<u32>,
    b: Ptr<u32>,
    bias: Ptr<f32>,
    sums: Ptr<f32>,
}

impl Product {
    /// A product without bias and residual; c is dense.
    pub fn new(size: [usize; 3], a: Operand, b: Operand, c: Output) -> Product {
        let stride = size[1];
        Product { unit: Unit::best(), size, a, b, c, stride, scale: 1.0, bias: None, residual: None, transposed: false }
    }

    /// Bytes of scratch memory that [`Product::run`] needs.
    pub fn scratch(&self) -> usize {
        self.oriented().words().iter().sum::<usize>() * size_of::<u32>()
    }

    /// The product as it is computed. A product of a few columns, whose rows have to be packed, goes faster as its
    /// transpose: packing wide panels is cheaper than packing narrow ones.
    fn oriented(&self) -> Product {
        let ([m, n, k], [_, width]) = (self.size, self.unit.tile());
        if self.a.along_k || self.b.along_k || self.bias.is_some() || n > self.unit.lanes() || m < width {
            return *self;
        }
        Product { size: [n, m, k], a: self.b, b: self.a, transposed: true, ..*self }
    }

    /// Words of each part of [`Space`].
    fn words(&self) -> [usize; 4] {
        let [m, n, k] = self.size;
        let depth = k.min(DEPTH);
        let ([rows, columns], [height, _]) = (self.blocks(depth), self.unit.tile());
        let (rows, columns) = (rows.min(m), columns.min(n));
        let a = pack::Panels { lines: rows, width: height, step: height, pairs: depth.div_ceil(2) };
        let b = self.panels_of_b(columns, depth);
        let sums = if self.keeps_sums() { m * n } else { 0 };
        [a.words(), b.words(), if self.bias.is_some() { n } else { 0 }, sums].map(|n| n.next_multiple_of(16))
    }

    /// Whether sums of several passes must be kept beside a c that cannot hold them.
    fn keeps_sums(&self) -> bool {
        self.size[2] > DEPTH && matches!(self.c, Output::Bf16(_))
    }

    /// Rows of a and columns of b that are packed at a time, whole tiles.
    fn blocks(&self, depth: usize) -> [usize; 2] {
        self.unit.tile().map(|side| (PACKED / depth.max(1)).next_multiple_of(side))
    }

    fn panels_of_b(&self, columns: usize, depth: usize) -> pack::Panels {
        let width = self.unit.tile()[1];
        pack::Panels { lines: columns, width, step: self.unit.lanes(), pairs: depth.div_ceil(2) }
    }

    /// Computes c, in one thread or, if it pays, with those of the pool.
    ///
    /// # Safety
    /// The operands are in live memory that nothing else writes concurrently, and nothing else touches c; c overlaps no
    /// operand but the residual, and that exactly. `scratch` has the bytes of [`Product::scratch`], aligned to 64.
    pub unsafe fn run(&self, scratch: Ptr<u32>, threads: bool) {
        // SAFETY: the caller vouches for it.
        unsafe { self.oriented().compute(scratch, threads) }
    }

    /// # Safety
    /// As for [`Product::run`].
    unsafe fn compute(&self, scratch: Ptr<u32>, threads: bool) {
        let [m, n, k] = self.size;
        if m == 0 || n == 0 {
            return;
        }
        let [a, b, bias, _] = self.words();
        let part = |offset: usize| scratch.at(offset);
        let space = Space {
            a: Ptr::new(part(0)),
            b: Ptr::new(part(a)),
            bias: Ptr::new(part(a + b).cast()),
            sums: Ptr::new(part(a + b + bias).cast()),
        };
        if let Some(bias) = self.bias {
            // SAFETY: the bias has n elements, and so has its place in the scratch memory.
            unsafe { bias.load(0, n, space.bias.at(0)) }
        }
        // At least one pass, so that c is written when k is 0.
        for first in (0..k.max(1)).step_by(DEPTH) {
            let ks = first..k.min(first + DEPTH);
            let [rows, columns] = self.blocks(ks.len());
            for column in (0..n).step_by(columns) {
                for row in (0..m).step_by(rows) {
                    let (rows, columns) = (row..m.min(row + rows), column..n.min(column + columns));
                    let block = Block::new(self, &space, rows, columns, ks.clone());
                    // SAFETY: the caller vouches for the operands; the blocks lie in them.
                    unsafe { block.run(threads) }
                }
            }
        }
    }

    /// What is added to the sums of a pass, and where the result goes.
    fn finish(&self, space: &Space, ks: &Range<usize>) -> Finish {
        let [m, n, k] = self.size;
        let (first, last) = (ks.start == 0, ks.end == k);
        let image = match self.c {
            Output::F32(_) => (self.c, self.stride),
            Output::Bf16(_) => (Output::F32(space.sums), if self.transposed { m } else { n }),
        };
        let start = Start {
            bias: self.bias.filter(|_| first).map(|_| space.bias),
            add: if first { self.residual.map(|residual| (residual, self.stride)) } else { Some(image) },
        };
        let (to, stride) = if last { (self.c, self.stride) } else { image };
        Finish { scale: self.scale, start, to, stride, transposed: self.transposed }
    }
}

/// A block of c over one pass of k, with the operands as they are packed for it.
struct Block<'a> {
    product: &'a Product,
    rows: Range<usize>,
    columns: Range<usize>,
    ks: Range<usize>,
    finish: Finish,
    /// Rows of the block that are read where they lie; those after them are packed.
    direct: usize,
    a: pack::Panels,
    to_a: Ptr<u32>,
    b: pack::Panels,
    to_b: Ptr<u32>,
}

impl<'a> Block<'a> {
    fn new(
        product: &'a Product,
        space: &Space,
        rows: Range<usize>,
        columns: Range<usize>,
        ks: Range<usize>,
    ) -> Block<'a> {
        let [height, width] = product.unit.tile();
        let Operand { stride, along_k, .. } = product.a;
        // A row of a holds its pairs already. Rows that lie a multiple of 4 KiB apart would share one set of the
        // first-level cache.
        let readable = along_k && ks.len().is_multiple_of(2) && product.unit.flushes();
        let spread = columns.len() <= width || !stride.is_multiple_of(2048);
        let direct = if readable && spread { rows.len() / height * height } else { 0 };
        let pairs = ks.len().div_ceil(2);
        Block {
            product,
            finish: product.finish(space, &ks),
            direct,
            a: pack::Panels { lines: rows.len() - direct, width: height, step: height, pairs },
            to_a: space.a,
            b: product.panels_of_b(columns.len(), ks.len()),
            to_b: space.b,
            rows,
            columns,
            ks,
        }
    }

    /// # Safety
    /// As for [`Product::run`].
    unsafe fn run(&self, threads: bool) {
        let [height, width] = self.product.unit.tile();
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let (a_lines, b_lines) = (PACKED_ROWS / height * height, PACKED_COLUMNS / width * width);
        let (a_tasks, b_tasks) = (self.a.lines.div_ceil(a_lines), columns.div_ceil(b_lines));
        // SAFETY: the caller vouches for the operands; each task packs its own lines.
        let pack = |task: usize| unsafe {
            if task < b_tasks {
                let lines = task * b_lines..columns.min((task + 1) * b_lines);
                self.pack(&self.product.b, self.columns.start, &self.b, lines, self.to_b)
            } else {
                let task = task - b_tasks;
                let lines = task * a_lines..self.a.lines.min((task + 1) * a_lines);
                self.pack(&self.product.a, self.rows.start + self.direct, &self.a, lines, self.to_a)
            }
        };
        let (high, wide) = (ROWS / height * height, COLUMNS / width * width);
        let down = rows.div_ceil(high);
        let multiply = |task: usize| {
            let (row, column) = (task % down * high, task / down * wide);
            // SAFETY: as above; each task writes its own part of c, and the packing has ended.
            unsafe { sweep(self.product.unit, self, row..rows.min(row + high), column..columns.min(column + wide)) }
        };
        let (packs, products) = (a_tasks + b_tasks, down * columns.div_ceil(wide));
        if threads && rows * columns * self.ks.len() >= WORTH_THREADS {
            tasks(packs, pack);
            tasks(products, multiply);
        } else {
            (0..packs).for_each(pack);
            (0..products).for_each(multiply);
        }
    }

    /// Packs lines of a block of an operand that starts at line `first`.
    ///
    /// # Safety
    /// As for [`Product::run`]; the lines are whole panels, up to the last of the block.
    unsafe fn pack(&self, from: &Operand, first: usize, panels: &pack::Panels, lines: Range<usize>, to: Ptr<u32>) {
        let source = pack::Source {
            at: from.at(first + lines.start, self.ks.start).cast(),
            stride: from.stride,
            along_k: from.along_k,
            k: self.ks.len(),
        };
        let to = to.at(panels.start(lines.start / panels.width));
        // SAFETY: the caller vouches for it.
        unsafe { pack::pack(self.product.unit, source, &pack::Panels { lines: lines.len(), ..*panels }, to) }
    }

    /// # Safety
    /// As for [`Product::run`]; the part lies in the block and starts at a tile, and the processor has the instructions
    /// of `S`.
    #[inline(always)]
    unsafe fn sweep<S: Isa>(&self, rows: Range<usize>, columns: Range<usize>) {
        let width = S::VECTORS * S::LANES;
        for column in columns.step_by(width) {
            let panel = column / width;
            let (have, vectors) = (self.b.lines_of(panel), self.b.width_of(panel) / S::LANES);
            let b = self.to_b.at(self.b.start(panel)).cast_const();
            for row in rows.clone().step_by(S::ROWS) {
                let a = if row < self.direct {
                    let Operand { stride, .. } = self.product.a;
                    let at = self.product.a.at(self.rows.start + row, self.ks.start);
                    tile::Rows { at: at.cast(), row: stride * size_of::<bf16>(), pair: size_of::<u32>() }
                } else {
                    let at = self.to_a.at(self.a.start((row - self.direct) / S::ROWS));
                    tile::Rows { at: at.cast(), row: size_of::<u32>(), pair: S::ROWS * size_of::<u32>() }
                };
                let here = tile::Part {
                    row: self.rows.start + row,
                    rows: S::ROWS.min(self.rows.len() - row),
                    column: self.columns.start + column,
                    columns: have,
                };
                // SAFETY: the caller vouches for the operands; packed tiles are whole, and rows that are read where
                // they lie are a whole tile.
                unsafe { tile::multiply::<S>(vectors, self.b.pairs, a, b, &self.finish, here) }
            }
        }
    }
}

for_units! {
    /// # Safety
    /// As for [`Block::sweep`].
    unsafe fn sweep<S>(block: &Block, rows: Range<usize>, columns: Range<usize>) {
        block.sweep::<S>(rows, columns)
    }
}
