//! Every unit gives the bits of the emulation of the instruction.

use super::*;
use crate::testing::random;

/// What `vdpbf16ps` computes in one lane: two fused multiply-adds, the odd element first, with subnormal numbers taken
/// as zero at the inputs and after each.
fn dot_pair(acc: f32, a: [bf16; 2], b: [bf16; 2]) -> f32 {
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    let step = |acc: f32, i: usize| flush(flush(a[i].to_f32()).mul_add(flush(b[i].to_f32()), flush(acc)));
    step(step(acc, 1), 0)
}

/// One chain over the elements of k.
fn chain(ks: Range<usize>, a: impl Fn(usize) -> bf16, b: impl Fn(usize) -> bf16) -> f32 {
    let end = ks.end;
    let pair = |x: &dyn Fn(usize) -> bf16, k: usize| [x(k), if k + 1 < end { x(k + 1) } else { bf16::ZERO }];
    ks.step_by(2).fold(0.0, |acc, k| dot_pair(acc, pair(&a, k), pair(&b, k)))
}

/// A case with its operands; strides are a little more than they must be.
struct Case {
    size: [usize; 3],
    along_k: [bool; 2],
    a: Vec<bf16>,
    b: Vec<bf16>,
    c: Vec<f32>,
    bias: Vec<f32>,
    scale: f32,
    with_bias: bool,
    with_residual: bool,
}

const GAP: usize = 3;

impl Case {
    fn new([m, n, k]: [usize; 3], along_k: [bool; 2], scale: f32, with_bias: bool, with_residual: bool) -> Case {
        let floats = |n, seed| random(n, seed).into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let halves = |n, seed| random(n, seed).into_iter().map(bf16::from_f64).collect();
        Case {
            size: [m, n, k],
            along_k,
            a: halves((m + GAP) * (k + GAP), 1),
            b: halves((n + GAP) * (k + GAP), 2),
            c: floats(m * (n + GAP), 3),
            bias: floats(n, 4),
            scale,
            with_bias,
            with_residual,
        }
    }

    fn stride(&self, operand: usize) -> usize {
        GAP + if self.along_k[operand] { self.size[2] } else { self.size[operand] }
    }

    /// c, if it is added to `residual`.
    fn expected(&self, residual: &[f32]) -> Vec<f32> {
        let [m, n, k] = self.size;
        let element = |operand: usize, x: &[bf16], i: usize, k: usize| {
            let stride = self.stride(operand);
            x[if self.along_k[operand] { i * stride + k } else { k * stride + i }]
        };
        let mut c = self.c.clone();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let at = i * (n + GAP) + j;
            let start = match (self.with_bias, self.with_residual) {
                (true, true) => self.bias[j] + residual[at],
                (true, false) => self.bias[j],
                (false, true) => residual[at],
                (false, false) => 0.0,
            };
            c[at] = (0..k.max(1)).step_by(DEPTH).fold(start, |sum, first| {
                let ks = first..k.min(first + DEPTH);
                self.scale * chain(ks, |k| element(0, &self.a, i, k), |k| element(1, &self.b, j, k)) + sum
            });
        }
        c
    }

    fn product(&self, unit: Unit, c: Output) -> Product {
        let operand = |i: usize, x: &[bf16]| {
            let at = Ptr::new(x.as_ptr().cast_mut());
            if self.along_k[i] { Operand::along_k(at, self.stride(i)) } else { Operand::across_k(at, self.stride(i)) }
        };
        let mut product = Product::new(self.size, operand(0, &self.a), operand(1, &self.b), c);
        product.unit = unit;
        product.stride = self.size[1] + GAP;
        product.scale = self.scale;
        let bias = Ptr::new(self.bias.as_ptr().cast_mut());
        product.bias = self.with_bias.then_some(Floats::Full(bias));
        product
    }

    /// In f32 and in bf16, the residual in place.
    fn check(&self, threads: usize) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let halves: Vec<bf16> = self.c.iter().map(|&x| round(x)).collect();
        let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let (expected, expected_half) = (self.expected(&self.c), self.expected(&widened));
        for unit in Unit::all() {
            let mut c = self.c.clone();
            let mut half = halves.clone();
            for to in [Output::F32(Ptr::new(c.as_mut_ptr())), Output::Bf16(Ptr::new(half.as_mut_ptr()))] {
                let mut product = self.product(unit, to);
                product.residual = self.with_residual.then_some(to);
                go(&product, &pool);
            }
            let case = (self.size, self.along_k, self.scale, self.with_bias, self.with_residual);
            let same = c.iter().zip(&expected).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "{unit:?} {case:?} with {threads} threads: different bits in f32");
            let same = half.iter().zip(&expected_half).all(|(x, &y)| x.to_bits() == round(y).to_bits());
            assert!(same, "{unit:?} {case:?} with {threads} threads: different bits in bf16");
        }
    }
}

fn round(x: f32) -> bf16 {
    bf16::from_bits(isa::round(x))
}

/// With scratch memory that holds garbage.
fn go(product: &Product, pool: &rayon::ThreadPool) {
    let mut scratch = vec![[f32::NAN; 16]; product.scratch().div_ceil(64)];
    // SAFETY: the operands of a case outlive the call.
    pool.install(|| unsafe { product.run(Ptr::new(scratch.as_mut_ptr().cast()), true) });
}

const LAYOUTS: [[bool; 2]; 4] = [[true, true], [true, false], [false, false], [false, true]];

#[test]
fn every_layout_and_size_has_the_bits_of_the_emulation() {
    for size in [
        [1, 1, 1],
        [1, 1, 0],
        [3, 5, 2],
        [8, 48, 16],
        [9, 49, 17],
        [7, 47, 31],
        [17, 8, 300],
        [8, 33, 770],
        [130, 100, 8],
        [5, 2, 4099],
        [3, 20, 2049],
        [60, 5, 2049],
        [37, 53, 401],
        [140, 390, 9],
        [8, 8, 64],
    ] {
        for along_k in LAYOUTS {
            for (scale, bias, residual) in
                [(1.0, false, false), (0.3, true, false), (0.7, false, true), (1.0, true, true)]
            {
                Case::new(size, along_k, scale, bias, residual).check(1);
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for size in [[200, 300, 400], [512, 8, 768], [8, 768, 512], [100, 90, 2500]] {
        for threads in [2, 3] {
            Case::new(size, [false, false], 0.5, false, true).check(threads);
            Case::new(size, [true, true], 1.0, true, false).check(threads);
        }
    }
}

/// Rows of a that are a multiple of 4 KiB apart are packed although they could be read.
#[test]
fn rows_at_distances_of_whole_pages() {
    let mut case = Case::new([20, 100, 2048 - GAP], [true, true], 1.0, false, false);
    assert_eq!(case.stride(0), 2048);
    case.check(1);
    case.size[1] = 40;
    case.check(1);
}

/// Wild exponents, subnormal numbers, infinities and NaN.
#[test]
fn the_instruction_is_two_fused_multiply_adds() {
    let Some(unit) = Unit::all().next().filter(|unit| unit.flushes()) else { return };
    let bits = |i: u32, salt: u32| sparta_graph::philox4x32_10([i, salt, 0, 0], [5, 6])[0];
    for i in 0..20_000 {
        let value = |lane: u32, salt: u32| match i % 2 {
            0 => bits(16 * i + lane, salt),
            // Products of the order of the smallest normal numbers.
            _ => bits(16 * i + lane, salt) & 0x807f_ffff | (bits(16 * i + lane, salt + 1) % 140) << 23,
        };
        let half =
            |salt| -> Vec<bf16> { (0..16).map(|lane| bf16::from_bits((value(lane, salt) >> 16) as u16)).collect() };
        let (a, b) = (half(1), half(3));
        let mut c = [0f32; 64];
        let operand = |x: &[bf16]| Operand::along_k(Ptr::new(x.as_ptr().cast_mut()), 2);
        let c_at = Output::F32(Ptr::new(c.as_mut_ptr()));
        let product = Product { unit, ..Product::new([8, 8, 2], operand(&a), operand(&b), c_at) };
        let mut scratch = vec![[0u32; 16]; product.scratch().div_ceil(64)];
        // SAFETY: the operands have 8 rows of 2, c 8 rows of 8.
        unsafe { product.run(Ptr::new(scratch.as_mut_ptr().cast()), false) };
        for (e, &got) in c.iter().enumerate() {
            let pair = |x: &[bf16], i: usize| [x[2 * i], x[2 * i + 1]];
            let expected = dot_pair(0.0, pair(&a, e / 8), pair(&b, e % 8));
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{:?} . {:?}: {got} for {expected}", pair(&a, e / 8), pair(&b, e % 8));
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_apart_from_subnormal_numbers() {
    let special = [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x0080_0000];
    for x in (0..u32::MAX).step_by(2551).chain(special).map(f32::from_bits) {
        let expected = if x.is_subnormal() { bf16::ZERO.to_f32().copysign(x) } else { bf16::from_f32(x).to_f32() };
        assert_eq!(round(x).to_f32().to_bits(), expected.to_bits(), "{x:e} {:x}", x.to_bits());
    }
}
