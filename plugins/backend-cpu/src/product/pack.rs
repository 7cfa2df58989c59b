//! Packing of an operand into panels of pairs of k.

use super::isa::Unit;
use std::ops::Range;

/// Panels of `width` lines (rows of a, columns of b), the last one no wider than it must be in units of `step`. The
/// pair p of line i of a panel lies at `p * width + i` words.
#[derive(Clone, Copy)]
pub struct Panels {
    pub lines: usize,
    pub width: usize,
    pub step: usize,
    pub pairs: usize,
}

impl Panels {
    /// Lines of a panel that exist.
    pub fn lines_of(&self, panel: usize) -> usize {
        (self.lines - panel * self.width).min(self.width)
    }

    pub fn width_of(&self, panel: usize) -> usize {
        self.lines_of(panel).next_multiple_of(self.step)
    }

    /// The first word of a panel.
    pub fn start(&self, panel: usize) -> usize {
        panel * self.width * self.pairs
    }

    pub fn words(&self) -> usize {
        self.lines.next_multiple_of(self.step) * self.pairs
    }
}

/// Lines of a bf16 matrix: element k of line i lies at `i * stride + k`, or, if lines do not run along k, at
/// `k * stride + i`.
#[derive(Clone, Copy)]
pub struct Source {
    pub at: *const u16,
    pub stride: usize,
    pub along_k: bool,
    pub k: usize,
}

impl Source {
    /// # Safety
    /// Element k of the line lies in the source.
    #[inline(always)]
    unsafe fn element(&self, line: usize, k: usize) -> u16 {
        let at = if self.along_k { line * self.stride + k } else { k * self.stride + line };
        // SAFETY: the caller vouches for it.
        unsafe { *self.at.add(at) }
    }
}

/// Packs the lines of `panels`, with zeros for those that do not exist.
///
/// # Safety
/// The lines lie in the source, `to` has room for the panels, and the processor has the unit's instructions.
pub unsafe fn pack(unit: Unit, source: Source, panels: &Panels, to: *mut u32) {
    // SAFETY: the caller vouches for it.
    unsafe {
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::DotProduct => x86::pack::<false>(source, panels, to),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 | Unit::Avx2 => x86::pack::<true>(source, panels, to),
            Unit::Plain => (0..panels.lines.div_ceil(panels.width)).for_each(|panel| {
                let to = to.add(panels.start(panel));
                rest::<true>(source, panels, panel, 0..panels.pairs, 0..panels.width_of(panel), to);
            }),
        }
    }
}

/// Writes lines across k one after the other, `stride` words apart, each as its pairs; what lies between the last pair
/// and `stride` is zero.
///
/// # Safety
/// The lines lie in the source, `to` has room for them, and the processor has the unit's instructions.
pub unsafe fn lines(unit: Unit, source: Source, lines: usize, to: *mut u32, stride: usize) {
    // SAFETY: the caller vouches for it.
    unsafe {
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::DotProduct => x86::lines::<false>(source, lines, to, stride),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 | Unit::Avx2 => x86::lines::<true>(source, lines, to, stride),
            Unit::Plain => rest_of_lines::<true>(source, 0..lines, 0..stride, to, stride),
        }
    }
}

/// Some pairs of some lines, one by one.
///
/// # Safety
/// As for [`lines`].
#[inline(always)]
unsafe fn rest_of_lines<const FLUSH: bool>(
    source: Source,
    lines: Range<usize>,
    pairs: Range<usize>,
    to: *mut u32,
    stride: usize,
) {
    for line in lines {
        for pair in pairs.clone() {
            // SAFETY: as below.
            let element = |k: usize| if k < source.k { unsafe { source.element(line, k) } } else { 0 };
            // SAFETY: the caller vouches for it.
            unsafe { *to.add(line * stride + pair) = word::<FLUSH>(element(2 * pair), element(2 * pair + 1)) }
        }
    }
}

/// The word of a pair; with `FLUSH` subnormal elements are zero.
#[inline(always)]
fn word<const FLUSH: bool>(even: u16, odd: u16) -> u32 {
    let flush = |x: u16| if FLUSH && x & 0x7f80 == 0 { x & 0x8000 } else { x };
    flush(even) as u32 | (flush(odd) as u32) << 16
}

/// Some pairs of some lines of a panel, one by one.
///
/// # Safety
/// As for [`pack`]; `to` is the start of the panel.
#[inline(always)]
unsafe fn rest<const FLUSH: bool>(
    source: Source,
    panels: &Panels,
    panel: usize,
    pairs: Range<usize>,
    lines: Range<usize>,
    to: *mut u32,
) {
    if lines.is_empty() {
        return;
    }
    let (have, width) = (panels.lines_of(panel), panels.width_of(panel));
    let element = |line: usize, k: usize| {
        // SAFETY: the caller vouches for the lines.
        if k < source.k { unsafe { source.element(panel * panels.width + line, k) } } else { 0 }
    };
    for pair in pairs {
        for line in lines.clone() {
            let word =
                if line < have { word::<FLUSH>(element(line, 2 * pair), element(line, 2 * pair + 1)) } else { 0 };
            // SAFETY: the caller vouches for the panel.
            unsafe { *to.add(pair * width + line) = word }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Panels, Source, rest, rest_of_lines};
    use std::arch::x86_64::*;

    /// # Safety
    /// As for [`super::pack`]; the processor has AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn pack<const FLUSH: bool>(source: Source, panels: &Panels, to: *mut u32) {
        // Whole panels, one after the other: one stream of stores at a time, and loads at a constant distance, which
        // the processor prefetches.
        for panel in 0..panels.lines.div_ceil(panels.width) {
            let to = to.wrapping_add(panels.start(panel));
            // SAFETY: the caller vouches for it.
            unsafe {
                if source.along_k {
                    along::<FLUSH>(source, panels, panel, to)
                } else {
                    across::<FLUSH>(source, panels, panel, to)
                }
            }
        }
    }

    /// Lines that run along k: squares of eight pairs of eight lines are transposed.
    ///
    /// # Safety
    /// As for [`super::pack`]; `to` is the start of the panel.
    #[inline(always)]
    unsafe fn along<const FLUSH: bool>(source: Source, panels: &Panels, panel: usize, to: *mut u32) {
        let width = panels.width_of(panel);
        let (lines, pairs) = (panels.lines_of(panel) / 8 * 8, source.k / 16 * 8);
        // SAFETY: the caller vouches for it; the lines and pairs of the squares exist.
        unsafe {
            let from = source.at.add(panel * panels.width * source.stride);
            for pair in (0..pairs).step_by(8) {
                for line in (0..lines).step_by(8) {
                    let at = from.add(line * source.stride + 2 * pair);
                    let row = |i: usize| flushed::<FLUSH>(_mm256_loadu_si256(at.add(i * source.stride).cast()));
                    transpose(std::array::from_fn(row), to.add(pair * width + line), width);
                }
            }
            rest::<FLUSH>(source, panels, panel, 0..pairs, lines..width, to);
            rest::<FLUSH>(source, panels, panel, pairs..panels.pairs, 0..width, to);
        }
    }

    /// Lines across k: two rows of the source are interleaved.
    ///
    /// # Safety
    /// As for [`along`].
    #[inline(always)]
    unsafe fn across<const FLUSH: bool>(source: Source, panels: &Panels, panel: usize, to: *mut u32) {
        let width = panels.width_of(panel);
        let (lines, pairs) = (panels.lines_of(panel) / 8 * 8, source.k / 2);
        // SAFETY: as in `along`.
        unsafe {
            let from = source.at.add(panel * panels.width);
            for pair in 0..pairs {
                let (even, to) = (from.add(2 * pair * source.stride), to.add(pair * width));
                for line in (0..lines).step_by(8) {
                    let words = interleaved::<FLUSH>(even.add(line), source.stride);
                    _mm256_storeu_si256(to.add(line).cast(), words);
                }
            }
            rest::<FLUSH>(source, panels, panel, 0..pairs, lines..width, to);
            rest::<FLUSH>(source, panels, panel, pairs..panels.pairs, 0..width, to);
        }
    }

    /// # Safety
    /// As for [`super::lines`]; the processor has AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn lines<const FLUSH: bool>(source: Source, lines: usize, to: *mut u32, stride: usize) {
        let (whole_lines, pairs) = (lines / 8 * 8, source.k / 32 * 16);
        // SAFETY: the caller vouches for it; the lines and pairs of the squares exist.
        unsafe {
            // 32 rows at a time, so that whole cache lines are written while the rows are read from end to end.
            for first in (0..pairs).step_by(16) {
                for line in (0..whole_lines).step_by(8) {
                    for pair in [first, first + 8] {
                        let at = source.at.add(2 * pair * source.stride + line);
                        let row = |i: usize| interleaved::<FLUSH>(at.add(2 * i * source.stride), source.stride);
                        transpose(std::array::from_fn(row), to.add(line * stride + pair), stride);
                    }
                }
            }
            rest_of_lines::<FLUSH>(source, whole_lines..lines, 0..pairs, to, stride);
            rest_of_lines::<FLUSH>(source, 0..lines, pairs..stride, to, stride);
        }
    }

    /// Eight elements of a row, each with the element below it in the high half.
    ///
    /// # Safety
    /// They lie in the source, rows `stride` apart, and the processor has AVX2.
    #[inline(always)]
    unsafe fn interleaved<const FLUSH: bool>(even: *const u16, stride: usize) -> __m256i {
        // SAFETY: the caller vouches for it.
        unsafe {
            let wide = |p: *const u16| _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            flushed::<FLUSH>(_mm256_or_si256(wide(even), _mm256_slli_epi32(wide(even.add(stride)), 16)))
        }
    }

    /// With `FLUSH`, zero of the same sign for subnormal elements.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn flushed<const FLUSH: bool>(x: __m256i) -> __m256i {
        if !FLUSH {
            return x;
        }
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let exponent = _mm256_and_si256(x, _mm256_set1_epi16(0x7f80));
            let subnormal = _mm256_cmpeq_epi16(exponent, _mm256_setzero_si256());
            _mm256_andnot_si256(_mm256_and_si256(subnormal, _mm256_set1_epi16(0x7fff)), x)
        }
    }

    /// Writes the transpose of eight rows of eight words, rows `width` words apart.
    ///
    /// # Safety
    /// `to` has room for it, and the processor has AVX2.
    #[inline(always)]
    unsafe fn transpose(rows: [__m256i; 8], to: *mut u32, width: usize) {
        // SAFETY: the caller vouches for it.
        unsafe {
            let mut pairs = [_mm256_setzero_si256(); 8];
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
            }
            for half in 0..2 {
                // Columns 2 * half and 2 * half + 1 of either half of the rows' words, from rows 0-3 and from rows 4-7.
                let columns = |rows: usize| {
                    let (low, high) = (pairs[4 * rows + half], pairs[4 * rows + 2 + half]);
                    [_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high)]
                };
                let (top, bottom) = (columns(0), columns(1));
                for i in 0..2 {
                    let to = to.add((2 * half + i) * width);
                    _mm256_storeu_si256(to.cast(), _mm256_permute2x128_si256(top[i], bottom[i], 0x20));
                    _mm256_storeu_si256(to.add(4 * width).cast(), _mm256_permute2x128_si256(top[i], bottom[i], 0x31));
                }
            }
        }
    }
}
