//! The instruction sets of x86-64.

use super::{Isa, round};
use std::arch::x86_64::*;
use std::mem::transmute;

/// AVX-512 BF16.
pub struct DotProduct;
/// AVX-512 F.
pub struct Avx512;
/// AVX2 with FMA.
pub struct Avx2;

/// The methods of [`Isa`] that are one instruction.
macro_rules! vectors {
    ($vector:ty, $zero:ident, $broadcast:ident, $load:ident, $store:ident, $add:ident, $multiply:ident,
     $multiply_add:ident, $half:ident, $sum:ident) => {
        type Vector = $vector;

        #[inline(always)]
        unsafe fn zero() -> $vector {
            // SAFETY: the caller vouches for the instructions.
            unsafe { $zero() }
        }

        #[inline(always)]
        unsafe fn broadcast(x: f32) -> $vector {
            // SAFETY: as above.
            unsafe { $broadcast(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> $vector {
            // SAFETY: the caller vouches for the instructions and the vector.
            unsafe { $load(p) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, x: $vector) {
            // SAFETY: as above.
            unsafe { $store(p, x) }
        }

        #[inline(always)]
        unsafe fn add(x: $vector, y: $vector) -> $vector {
            // SAFETY: as above.
            unsafe { $add(x, y) }
        }

        #[inline(always)]
        unsafe fn multiply(x: $vector, y: $vector) -> $vector {
            // SAFETY: as above.
            unsafe { $multiply(x, y) }
        }

        #[inline(always)]
        unsafe fn multiply_add(x: $vector, y: $vector, acc: $vector) -> $vector {
            // SAFETY: as above.
            unsafe { $multiply_add(x, y, acc) }
        }

        #[inline(always)]
        unsafe fn sum(x: $vector) -> f32 {
            // SAFETY: as above.
            unsafe { $sum(x) }
        }

        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> $vector {
            // SAFETY: as above; a vector of f16 is half as long.
            unsafe { $half(p.cast::<[u16; Self::LANES]>().read_unaligned()) }
        }
    };
}

macro_rules! vectors512 {
    () => {
        vectors!(
            __m512,
            _mm512_setzero_ps,
            _mm512_set1_ps,
            _mm512_loadu_ps,
            _mm512_storeu_ps,
            _mm512_add_ps,
            _mm512_mul_ps,
            _mm512_fmadd_ps,
            widen_halves512,
            sum512
        );

        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m512 {
            // SAFETY: the caller vouches for the instructions and the vector.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32(words, 16))
            }
        }
    };
}

impl Isa for DotProduct {
    type Pairs = __m512bh;
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const VECTORS: usize = 3;
    vectors512!();

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        // SAFETY: the caller vouches for the instructions and the vector.
        unsafe { _mm256_storeu_si256(p.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))) }
    }

    #[inline(always)]
    unsafe fn pairs(p: *const u32) -> __m512bh {
        // SAFETY: as above.
        unsafe { transmute(_mm512_loadu_si512(p.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(p: *const u32) -> __m512bh {
        // SAFETY: as above.
        unsafe { transmute(_mm512_set1_epi32(p.read_unaligned() as i32)) }
    }

    #[inline(always)]
    unsafe fn dot(acc: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_dpbf16_ps(acc, a, b) }
    }
}

impl Isa for Avx512 {
    /// The odd elements as f32, then the even ones.
    type Pairs = [__m512; 2];
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const VECTORS: usize = 2;
    vectors512!();

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        // SAFETY: the caller vouches for the instructions and the vector.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(transmute::<__m512, [f32; 16]>(x).map(round)) }
    }

    #[inline(always)]
    unsafe fn pairs(p: *const u32) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { widen512(_mm512_loadu_si512(p.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(p: *const u32) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { widen512(_mm512_set1_epi32(p.read_unaligned() as i32)) }
    }

    #[inline(always)]
    unsafe fn dot(acc: __m512, a: [__m512; 2], b: [__m512; 2]) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a[1], b[1], _mm512_fmadd_ps(a[0], b[0], acc)) }
    }
}

impl Isa for Avx2 {
    /// The odd elements as f32, then the even ones.
    type Pairs = [__m256; 2];
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const VECTORS: usize = 2;
    vectors!(
        __m256,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        widen_halves256,
        sum256
    );

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        // SAFETY: the caller vouches for the instructions and the vector.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(words, 16))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m256) {
        // SAFETY: the caller vouches for the instructions and the vector.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(transmute::<__m256, [f32; 8]>(x).map(round)) }
    }

    #[inline(always)]
    unsafe fn pairs(p: *const u32) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { widen256(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(p: *const u32) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { widen256(_mm256_set1_epi32(p.read_unaligned() as i32)) }
    }

    #[inline(always)]
    unsafe fn dot(acc: __m256, a: [__m256; 2], b: [__m256; 2]) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a[1], b[1], _mm256_fmadd_ps(a[0], b[0], acc)) }
    }
}

/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn widen512(x: __m512i) -> [__m512; 2] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let odd = _mm512_and_si512(x, _mm512_set1_epi32(-65536));
        [_mm512_castsi512_ps(odd), _mm512_castsi512_ps(_mm512_slli_epi32(x, 16))]
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn widen256(x: __m256i) -> [__m256; 2] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let odd = _mm256_and_si256(x, _mm256_set1_epi32(-65536));
        [_mm256_castsi256_ps(odd), _mm256_castsi256_ps(_mm256_slli_epi32(x, 16))]
    }
}

/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn widen_halves512(x: [u16; 16]) -> __m512 {
    // SAFETY: the caller vouches for the instructions.
    unsafe { _mm512_cvtph_ps(transmute::<[u16; 16], __m256i>(x)) }
}

/// # Safety
/// The processor has F16C.
#[inline(always)]
unsafe fn widen_halves256(x: [u16; 8]) -> __m256 {
    // SAFETY: the caller vouches for the instructions.
    unsafe { _mm256_cvtph_ps(transmute::<[u16; 8], __m128i>(x)) }
}

/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn sum512(x: __m512) -> f32 {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x)));
        sum256(_mm256_add_ps(_mm512_castps512_ps256(x), upper))
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn sum256(x: __m256) -> f32 {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}
