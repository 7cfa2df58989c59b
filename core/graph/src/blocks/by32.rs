//! Blocks of 32 elements with one scale `d` and at most one offset `m`, both f16: `d * (q - bias)` or `d * q + m`. Of 4-bit
//! numbers the first 16 are the low halves of the bytes, the others the high ones; fifth bits lie in a word.

use super::half;

pub(super) const ELEMENTS: usize = 32;

type Values = [f32; ELEMENTS];

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut Values) {
    let d = half(block, 0);
    for i in 0..16 {
        let byte = i32::from(block[2 + i]);
        out[i] = d * ((byte & 15) - 8) as f32;
        out[16 + i] = d * ((byte >> 4) - 8) as f32;
    }
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut Values) {
    let (d, m) = (half(block, 0), half(block, 2));
    for i in 0..16 {
        let byte = block[4 + i];
        out[i] = d * f32::from(byte & 15) + m;
        out[16 + i] = d * f32::from(byte >> 4) + m;
    }
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut Values) {
    let (d, fifth) = (half(block, 0), word(block, 2));
    for i in 0..16 {
        let [low, high] = five_bits(block[6 + i], fifth, i);
        out[i] = d * (low as i32 - 16) as f32;
        out[16 + i] = d * (high as i32 - 16) as f32;
    }
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut Values) {
    let (d, m, fifth) = (half(block, 0), half(block, 2), word(block, 4));
    for i in 0..16 {
        let [low, high] = five_bits(block[8 + i], fifth, i);
        out[i] = d * low as f32 + m;
        out[16 + i] = d * high as f32 + m;
    }
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut Values) {
    let d = half(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(value, &q)| *value = d * f32::from(q as i8));
}

pub(super) fn encode_q8_0(values: &Values) -> [u8; 34] {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut block = [0; 34];
    block[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
    block[2..].iter_mut().zip(values).for_each(|(q, value)| *q = (value * inverse).round() as i8 as u8);
    block
}

#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Elements `i` and `16 + i`.
#[inline(always)]
fn five_bits(byte: u8, fifth: u32, i: usize) -> [u32; 2] {
    let byte = u32::from(byte);
    [byte & 15 | (fifth >> i & 1) << 4, byte >> 4 | (fifth >> (16 + i) & 1) << 4]
}
