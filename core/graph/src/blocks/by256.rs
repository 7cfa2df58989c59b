//! Blocks of 256 elements, cut into groups whose scales are small integers, times one or two f16 for the block. In Q4_K
//! and Q5_K eight groups of 32 have a scale and an offset of 6 bits each; in Q6_K 16 groups of 16 have a scale of 8
//! bits.

use super::half;

pub(super) const ELEMENTS: usize = 256;

type Values = [f32; ELEMENTS];

pub(super) fn q4_k(block: &[u8; 144], out: &mut Values) {
    let (scales, numbers) = (&block[4..16], &block[16..]);
    for (pair, (values, bytes)) in out.chunks_exact_mut(64).zip(numbers.chunks_exact(32)).enumerate() {
        let [(d1, m1), (d2, m2)] = [2 * pair, 2 * pair + 1].map(|group| affine(block, scales, group));
        for (i, &byte) in bytes.iter().enumerate() {
            values[i] = d1 * f32::from(byte & 15) - m1;
            values[32 + i] = d2 * f32::from(byte >> 4) - m2;
        }
    }
}

/// As [`q4_k`]; the fifth bit of element i of group g is bit g of byte i.
pub(super) fn q5_k(block: &[u8; 176], out: &mut Values) {
    let (scales, fifth, numbers) = (&block[4..16], &block[16..48], &block[48..]);
    for (pair, (values, bytes)) in out.chunks_exact_mut(64).zip(numbers.chunks_exact(32)).enumerate() {
        let [(d1, m1), (d2, m2)] = [2 * pair, 2 * pair + 1].map(|group| affine(block, scales, group));
        for (i, (&byte, &bits)) in bytes.iter().zip(fifth).enumerate() {
            let bits = bits >> (2 * pair);
            values[i] = d1 * f32::from(byte & 15 | (bits & 1) << 4) - m1;
            values[32 + i] = d2 * f32::from(byte >> 4 | (bits >> 1 & 1) << 4) - m2;
        }
    }
}

/// Halves of 128 elements: four runs of 32, of which the first two are the low halves of 64 bytes, with two bits more
/// each.
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

/// Scale and offset of a group: six bits each, in twelve bytes. For the first four groups they are the low bits of
/// bytes 0 to 3 and 4 to 7; for the others, the low four bits are in bytes 8 to 11, and the high two are the top bits
/// of the first.
fn affine(block: &[u8], scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, offset) = match group {
        0..4 => (scales[group] & 63, scales[group + 4] & 63),
        _ => {
            let low = scales[group + 4];
            (low & 15 | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4)
        }
    };
    (half(block, 0) * f32::from(scale), half(block, 2) * f32::from(offset))
}
