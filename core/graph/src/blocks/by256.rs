//! Blocks of 256 elements, cut into groups whose scales are small integers, times one or two f16 for the block. In Q4_K
//! and Q5_K eight groups of 32 have a scale and an offset of 6 bits each; in Q6_K 16 groups of 16 have a scale of 8
//! bits.

use super::half;

pub(super) const ELEMENTS: usize = 256;

type Values = [f32; ELEMENTS];

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut Values) {
    let numbers = &block[16..];
    for (group, (values, (d, m))) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(affine(block)).enumerate() {
        let (bytes, shift) = (&numbers[GROUP * (group / 2)..][..GROUP], 4 * (group % 2));
        values.iter_mut().zip(bytes).for_each(|(value, byte)| *value = d * f32::from(byte >> shift & 15) - m);
    }
}

/// As llama.cpp's `quantize_row_q4_K_ref`: each group has the scale and offset that [`fit`] finds, rounded to six bits of the
/// block's largest; then each number is the nearest of those that the block can hold.
pub(super) fn encode_q4_k(values: &[f32; ELEMENTS]) -> [u8; 144] {
    let fits: Vec<(f32, f32)> = values.as_chunks().0.iter().map(fit).collect();
    let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let (scale, offset) = (largest(|fit| fit.0), largest(|fit| fit.1));
    let six_bits = |x: f32, most: f32| {
        let inverse = if most > 0.0 { 63.0 / most } else { 0.0 };
        (inverse * x).round_ties_even().min(63.0) as u8
    };
    let mut block = [0u8; 144];
    block[..2].copy_from_slice(&half::f16::from_f32(scale / 63.0).to_le_bytes());
    block[2..4].copy_from_slice(&half::f16::from_f32(offset / 63.0).to_le_bytes());
    let (head, numbers) = block.split_at_mut(16);
    for (group, fit) in fits.iter().enumerate() {
        let (s, m) = (six_bits(fit.0, scale), six_bits(fit.1, offset));
        let packed = &mut head[4..];
        match group {
            0..4 => (packed[group], packed[group + 4]) = (s, m),
            _ => {
                packed[group + 4] = s & 15 | (m & 15) << 4;
                packed[group - 4] |= s >> 4 << 6;
                packed[group] |= m >> 4 << 6;
            }
        }
    }
    for (group, (values, (d, m))) in values.chunks_exact(GROUP).zip(affine(head)).enumerate() {
        let bytes = &mut numbers[32 * (group / 2)..32 * (group / 2 + 1)];
        for (byte, &x) in bytes.iter_mut().zip(values) {
            let q = if d == 0.0 { 0 } else { ((x + m) / d).round_ties_even().clamp(0.0, 15.0) as u8 };
            *byte |= q << (4 * (group % 2));
        }
    }
    block
}

/// Elements of a group of Q4_K and Q5_K.
const GROUP: usize = 32;

/// Scale and offset with which 4-bit numbers come closest to the values, larger ones counting more: llama.cpp's
/// `make_qkx2_quants`. For each of 21 scales, the values are rounded and the best scale and offset for them computed;
/// the best of these is taken.
fn fit(values: &[f32; GROUP]) -> (f32, f32) {
    const MOST: f32 = 15.0;
    let mean = (values.iter().map(|x| x * x).sum::<f32>() / GROUP as f32).sqrt();
    let weights = values.map(|x| mean + x.abs());
    let weighted = || values.iter().zip(&weights);
    let (sum_w, sum_x) = weighted().fold((0.0, 0.0), |(sum_w, sum_x), (x, w)| (sum_w + w, sum_x + w * x));
    let least = values.iter().copied().fold(0.0, f32::min);
    let most = values.iter().copied().fold(f32::MIN, f32::max);
    if most <= least {
        return (0.0, -least);
    }
    let numbers = |inverse: f32| values.map(|x| (inverse * (x - least)).round_ties_even().clamp(0.0, MOST));
    let error = |numbers: &[f32; GROUP], scale: f32, offset: f32| {
        weighted().zip(numbers).fold(0.0, |sum, ((x, w), q)| {
            let difference = scale * q + offset - x;
            sum + w * (difference * difference)
        })
    };
    let mut best = (1.0 / (MOST / (most - least)), least);
    let mut best_error = error(&numbers(MOST / (most - least)), best.0, best.1);
    for step in 0..=20 {
        let numbers = numbers((-1.0 + 0.1 * step as f32 + MOST) / (most - least));
        let (mut sum_q, mut sum_q2, mut sum_xq) = (0.0, 0.0, 0.0);
        for ((x, w), q) in weighted().zip(&numbers) {
            (sum_q, sum_q2, sum_xq) = (sum_q + w * q, sum_q2 + w * q * q, sum_xq + w * q * x);
        }
        let determinant = sum_w * sum_q2 - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut found =
            ((sum_w * sum_xq - sum_x * sum_q) / determinant, (sum_q2 * sum_x - sum_q * sum_xq) / determinant);
        if found.1 > 0.0 {
            found = (sum_xq / sum_q2, 0.0);
        }
        let error = error(&numbers, found.0, found.1);
        if error < best_error {
            (best, best_error) = (found, error);
        }
    }
    (best.0, -best.1)
}

/// As [`q4_k`]; the fifth bit of element i of group g is bit g of byte i.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut Values) {
    let (fifth, numbers) = (&block[16..48], &block[48..]);
    for (group, (values, (d, m))) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(affine(block)).enumerate() {
        let (bytes, shift) = (&numbers[GROUP * (group / 2)..][..GROUP], 4 * (group % 2));
        for (value, (byte, bits)) in values.iter_mut().zip(bytes.iter().zip(fifth)) {
            *value = d * f32::from(byte >> shift & 15 | (bits >> group & 1) << 4) - m;
        }
    }
}

/// Halves of 128 elements: four runs of 32, of which the first two are the low halves of 64 bytes, with two bits more
/// each.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut Values) {
    let d = half(block, 208);
    for (n, values) in out.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&block[64 * n..64 * n + 64], &block[128 + 32 * n..160 + 32 * n]);
        let scales = &block[192 + 8 * n..200 + 8 * n];
        for run in 0..4 {
            for (i, &bits) in high.iter().enumerate() {
                let byte = low[32 * (run & 1) + i] >> ((run & 2) * 2) & 15;
                let q = i32::from(byte | (bits >> (2 * run) & 3) << 4) - 32;
                let scale = f32::from(scales[2 * run + i / 16] as i8);
                values[32 * run + i] = d * scale * q as f32;
            }
        }
    }
}

/// Scale and offset of each group: six bits each, in twelve bytes. For the first four groups they are the low bits of
/// bytes 0 to 3 and 4 to 7; for the others, the low four bits are in bytes 8 to 11, and the high two are the top bits
/// of the first.
#[inline(always)]
pub(super) fn affine(block: &[u8]) -> [(f32, f32); ELEMENTS / GROUP] {
    let (d, m, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    std::array::from_fn(|group| {
        let (scale, offset) = match group {
            0..4 => (scales[group] & 63, scales[group + 4] & 63),
            _ => {
                let low = scales[group + 4];
                (low & 15 | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4)
            }
        };
        (d * f32::from(scale), m * f32::from(offset))
    })
}
