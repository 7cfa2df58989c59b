//! Loops that the compiler vectorises, compiled for each instruction set and chosen at run time.

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

/// The best one of this machine.
#[inline]
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma");
        if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            return Isa::Avx512;
        }
        if avx2 {
            return Isa::Avx2;
        }
    }
    Isa::Baseline
}

impl Isa {
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            Isa::Baseline if cfg!(target_arch = "aarch64") => "NEON",
            Isa::Baseline => "baseline vectors",
        }
    }
}

/// Compiles an unsafe function for every [`Isa`]; a call takes the best one. What the body calls must be
/// `#[inline(always)]` to be compiled with it.
macro_rules! simd {
    ($(
        $(#[$attribute:meta])*
        $vis:vis unsafe fn $name:ident<$T:ident: Real $(, const $N:ident: $N_ty:ty)?>(
            $($arg:ident: $ty:ty),* $(,)?
        ) $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name<$T: Real $(, const $N: $N_ty)?>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            unsafe fn body<$T: Real $(, const $N: $N_ty)?>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of the outer function vouches for the arguments.
                #[allow(unused_unsafe, clippy::macro_metavars_in_unsafe)]
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512<$T: Real $(, const $N: $N_ty)?>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as in `body`.
                unsafe { body::<$T $(, $N)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<$T: Real $(, const $N: $N_ty)?>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as in `body`.
                unsafe { body::<$T $(, $N)?>($($arg),*) }
            }
            // SAFETY: as in `body`; `isa` has found the instructions on this machine.
            unsafe {
                match $crate::simd::isa() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Isa::Avx512 => avx512::<$T $(, $N)?>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Isa::Avx2 => avx2::<$T $(, $N)?>($($arg),*),
                    $crate::simd::Isa::Baseline => body::<$T $(, $N)?>($($arg),*),
                }
            }
        }
    )*};
}

/// Elements per block of [`map`].
pub const BLOCK: usize = 64;

/// `map!(n, |x, y| -> out { body })`: `*out = body` for n elements, where `x`, `y` and `out` are pointers outside and
/// elements inside of the body. Inputs are read in blocks before outputs are written, so an output may be at the same
/// address as an input. With several outputs the body is a tuple.
macro_rules! map {
    ($n:expr, |$($x:ident),*| -> $($y:ident),+ $body:block) => {{
        const BLOCK: usize = $crate::simd::BLOCK;
        let (n, mut i) = ($n, 0);
        while i < n {
            $(let $x = $crate::simd::load_block($x, i, n);)*
            let ($(mut $y,)+) = ($(($y, [bytemuck::Zeroable::zeroed(); BLOCK]),)+);
            for l in 0..BLOCK {
                $(let $x = $x[l];)*
                ($($y.1[l]),+) = $body;
            }
            $($crate::simd::store_block($y.0, i, n, &$y.1);)+
            i += BLOCK;
        }
    }};
}

/// Elements `i .. i + BLOCK`, zero from n on.
///
/// # Safety
/// `x` has n elements.
#[inline(always)]
pub unsafe fn load_block<E: bytemuck::Zeroable + Copy>(x: *const E, i: usize, n: usize) -> [E; BLOCK] {
    // SAFETY: the caller vouches for n, and no element from n on is read.
    unsafe {
        if i + BLOCK <= n {
            return x.add(i).cast::<[E; BLOCK]>().read_unaligned();
        }
        let mut block = [E::zeroed(); BLOCK];
        std::ptr::copy_nonoverlapping(x.add(i), block.as_mut_ptr(), n - i);
        block
    }
}

/// Writes elements `i .. i + BLOCK`, but none from n on.
///
/// # Safety
/// `y` has n elements.
#[inline(always)]
pub unsafe fn store_block<E: Copy>(y: *mut E, i: usize, n: usize, block: &[E; BLOCK]) {
    // SAFETY: the caller vouches for n, and no element from n on is written.
    unsafe {
        if i + BLOCK <= n {
            y.add(i).cast::<[E; BLOCK]>().write_unaligned(*block);
        } else {
            std::ptr::copy_nonoverlapping(block.as_ptr(), y.add(i), n - i);
        }
    }
}

/// Independent partial sums of a reduction: the order of additions is the same for every instruction set.
pub const LANES: usize = 32;

/// The sum of the lanes, pairwise; N is a power of two.
#[inline(always)]
pub fn sum_lanes<T: crate::real::Real, const N: usize>(lanes: [T; N]) -> T {
    // Without the barrier the compiler vectorizes the whole loop like its last step here, two lanes wide.
    let mut lanes = std::hint::black_box(lanes);
    let mut width = N / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `sum!(T, |x, y| body)`: the sum of the body over slices of one length, which are named outside and stand for their
/// elements inside of the body.
macro_rules! sum {
    ($T:ty, |$($x:ident),+| $body:expr) => {{
        const LANES: usize = $crate::simd::LANES;
        let (mut lanes, mut rest) = ([<$T as Real>::ZERO; LANES], <$T as Real>::ZERO);
        let n = [$($x.len()),+].into_iter().fold(usize::MAX, usize::min);
        let blocks = n / LANES;
        for b in 0..blocks {
            $(let $x = &$x.as_chunks::<LANES>().0[b];)+
            for l in 0..LANES {
                $(let $x = $x[l];)+
                lanes[l] += $body;
            }
        }
        for i in blocks * LANES..n {
            $(let $x = $x[i];)+
            rest += $body;
        }
        $crate::simd::sum_lanes(lanes) + rest
    }};
}

pub(crate) use {map, simd, sum};

/// `sum of x[i] y[i]`.
#[inline(always)]
pub fn dot<T: crate::real::Real>(x: &[T], y: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (x, y) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let mut rest = T::ZERO;
    for (&x, &y) in x.remainder().iter().zip(y.remainder()) {
        rest = x.mul_add(y, rest);
    }
    for (x, y) in x.zip(y) {
        for l in 0..LANES {
            lanes[l] = x[l].mul_add(y[l], lanes[l]);
        }
    }
    sum_lanes(lanes) + rest
}
