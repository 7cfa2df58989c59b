//! What the product needs from an instruction set.

#[cfg(target_arch = "x86_64")]
pub mod x86;

use crate::simd::sum_lanes;

/// The instructions that multiply. The others exist only if the processor has what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `vdpbf16ps` of AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    DotProduct,
    /// Two fused multiply-adds per pair.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

impl Unit {
    /// Those of this processor, best first.
    pub fn all() -> impl Iterator<Item = Unit> {
        #[cfg(target_arch = "x86_64")]
        let fast = {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl");
            let dot_product = avx512 && has!("avx512bf16");
            [(Unit::DotProduct, dot_product), (Unit::Avx512, avx512), (Unit::Avx2, avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [(Unit, bool); 0] = [];
        fast.into_iter().chain([(Unit::Plain, true)]).filter_map(|(unit, here)| here.then_some(unit))
    }

    pub fn best() -> Unit {
        Unit::all().next().unwrap_or(Unit::Plain)
    }

    /// Rows and columns of a tile.
    pub fn tile(self) -> [usize; 2] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Unit::DotProduct => size::<x86::DotProduct>(),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 => size::<x86::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx2 => size::<x86::Avx2>(),
            Unit::Plain => size::<Plain>(),
        }
    }

    /// Columns of a vector.
    pub fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Unit::DotProduct | Unit::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Unit::Avx2 => 8,
            Unit::Plain => 8,
        }
    }

    /// Whether the instructions take subnormal operands as zero; for the others that is done while packing.
    pub fn flushes(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Unit::DotProduct;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether this processor has instructions that multiply bf16.
    pub fn in_hardware() -> bool {
        Unit::best().flushes()
    }
}

fn size<S: Isa>() -> [usize; 2] {
    [S::ROWS, S::VECTORS * S::LANES]
}

/// Vectors of f32 sums, and of pairs of bf16: the element of k in the low half of 32 bits, that of k + 1 in the high.
///
/// # Safety
/// Methods may be called if the processor has the instructions, with pointers to whole vectors.
pub trait Isa {
    type Vector: Copy;
    type Pairs: Copy;
    const LANES: usize;
    /// Rows of a tile, at most [`super::tile::HEIGHT`].
    const ROWS: usize;
    /// Vectors in a row of a tile: at most 3, and [`super::tile::WIDTH`] columns.
    const VECTORS: usize;
    unsafe fn zero() -> Self::Vector;
    unsafe fn broadcast(x: f32) -> Self::Vector;
    unsafe fn load(p: *const f32) -> Self::Vector;
    unsafe fn load_bf16(p: *const u16) -> Self::Vector;
    unsafe fn load_f16(p: *const u16) -> Self::Vector;
    unsafe fn store(p: *mut f32, x: Self::Vector);
    /// Rounds as [`round`] does.
    unsafe fn store_bf16(p: *mut u16, x: Self::Vector);
    unsafe fn add(x: Self::Vector, y: Self::Vector) -> Self::Vector;
    unsafe fn multiply(x: Self::Vector, y: Self::Vector) -> Self::Vector;
    /// `x y + acc`, rounded once.
    unsafe fn multiply_add(x: Self::Vector, y: Self::Vector, acc: Self::Vector) -> Self::Vector;
    /// The sum of the lanes: the upper half is added to the lower one until one is left.
    unsafe fn sum(x: Self::Vector) -> f32;
    unsafe fn pairs(p: *const u32) -> Self::Pairs;
    /// The pair at p, which need not be aligned, in all lanes.
    unsafe fn splat(p: *const u32) -> Self::Pairs;
    /// `acc + a b` of the odd elements, and to that `a b` of the even ones, rounded after each.
    unsafe fn dot(acc: Self::Vector, a: Self::Pairs, b: Self::Pairs) -> Self::Vector;
}

/// Plain code. The product of two bf16 is exact in f32, so that multiplying and adding rounds as a fused multiply-add.
pub struct Plain;

impl Isa for Plain {
    type Vector = [f32; 8];
    type Pairs = [u32; 8];
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn broadcast(x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller vouches for the vector.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 8] {
        // SAFETY: as above.
        unsafe { p.cast::<[u16; 8]>().read_unaligned().map(|x| f32::from_bits((x as u32) << 16)) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> [f32; 8] {
        // SAFETY: as above.
        unsafe { p.cast::<[u16; 8]>().read_unaligned().map(|x| half::f16::from_bits(x).to_f32()) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; 8]) {
        // SAFETY: as above.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: [f32; 8]) {
        // SAFETY: as above.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(x.map(round)) }
    }

    #[inline(always)]
    unsafe fn add(x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| x[i] + y[i])
    }

    #[inline(always)]
    unsafe fn multiply(x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| x[i] * y[i])
    }

    #[inline(always)]
    unsafe fn multiply_add(x: [f32; 8], y: [f32; 8], acc: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| f32::mul_add(x[i], y[i], acc[i]))
    }

    #[inline(always)]
    unsafe fn sum(x: [f32; 8]) -> f32 {
        sum_lanes(x)
    }

    #[inline(always)]
    unsafe fn pairs(p: *const u32) -> [u32; 8] {
        // SAFETY: as above.
        unsafe { p.cast::<[u32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat(p: *const u32) -> [u32; 8] {
        // SAFETY: as above.
        unsafe { [p.read_unaligned(); 8] }
    }

    #[inline(always)]
    unsafe fn dot(acc: [f32; 8], a: [u32; 8], b: [u32; 8]) -> [f32; 8] {
        let odd = |x: u32| f32::from_bits(x & 0xffff_0000);
        let even = |x: u32| f32::from_bits(x << 16);
        std::array::from_fn(|i| acc[i] + odd(a[i]) * odd(b[i]) + even(a[i]) * even(b[i]))
    }
}

/// f32 to the bits of bf16: to nearest, ties to even, subnormal numbers to zero, NaN kept quiet; as `vcvtneps2bf16`.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    let nearest = if bits & 0x7f80_0000 == 0 { (bits >> 16) & 0x8000 } else { nearest };
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if nan { (bits >> 16) | 0x40 } else { nearest }) as u16
}

/// Compiles an unsafe function that is generic over [`Isa`] for the instructions of each [`Unit`]; a call takes those of
/// its first argument. What the body calls must be `#[inline(always)]` to be compiled with it.
macro_rules! for_units {
    (
        $(#[$attribute:meta])*
        $vis:vis unsafe fn $name:ident<$S:ident $(, const $N:ident: usize)?>($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $vis unsafe fn $name$(<const $N: usize>)?(unit: $crate::product::Unit, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::needless_range_loop)] // Counted loops are what the compiler unrolls.
            unsafe fn body<$S: $crate::product::Isa $(, const $N: usize)?>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of the outer function vouches for the arguments.
                unsafe { $body }
            }
            $crate::product::for_units!(@x86 "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16",
                dot_product, DotProduct, [$($N)?], [$($arg: $ty),*], [$($ret)?]);
            $crate::product::for_units!(@x86 "avx2,fma,f16c,avx512f,avx512bw,avx512vl",
                avx512, Avx512, [$($N)?], [$($arg: $ty),*], [$($ret)?]);
            $crate::product::for_units!(@x86 "avx2,fma,f16c", avx2, Avx2, [$($N)?], [$($arg: $ty),*], [$($ret)?]);
            use $crate::product::Unit;
            // SAFETY: as in `body`; the caller has found the instructions on this machine.
            unsafe {
                match unit {
                    #[cfg(target_arch = "x86_64")]
                    Unit::DotProduct => dot_product$(::<$N>)?($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Unit::Avx512 => avx512$(::<$N>)?($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Unit::Avx2 => avx2$(::<$N>)?($($arg),*),
                    Unit::Plain => body::<$crate::product::Plain $(, $N)?>($($arg),*),
                }
            }
        }
    };
    (@x86 $features:literal, $name:ident, $isa:ident, [$($N:ident)?], [$($arg:ident: $ty:ty),*], [$($ret:ty)?]) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name$(<const $N: usize>)?($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as in `body`.
            unsafe { body::<$crate::product::x86::$isa $(, $N)?>($($arg),*) }
        }
    };
}

pub(crate) use for_units;
