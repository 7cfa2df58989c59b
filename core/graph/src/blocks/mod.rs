//! Block formats of quantized weights, as in GGUF files: a block of adjacent elements of a row has its own scales
//! besides a few bits per element. Decoding gives the numbers of llama.cpp's reference, bit for bit in f32.

mod by256;
mod by32;
mod put;

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a row of a quantized weight is stored. Names are those of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Blocks {
    pub const ALL: [Blocks; 8] =
        [Blocks::Q4_0, Blocks::Q4_1, Blocks::Q5_0, Blocks::Q5_1, Blocks::Q8_0, Blocks::Q4K, Blocks::Q5K, Blocks::Q6K];

    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            Blocks::Q4K | Blocks::Q5K | Blocks::Q6K => by256::ELEMENTS,
            _ => by32::ELEMENTS,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Blocks::Q4_0 => 18,
            Blocks::Q4_1 => 20,
            Blocks::Q5_0 => 22,
            Blocks::Q5_1 => 24,
            Blocks::Q8_0 => 34,
            Blocks::Q4K => 144,
            Blocks::Q5K => 176,
            Blocks::Q6K => 210,
        }
    }

    /// Bytes of this many elements; `None` if they are not whole blocks, or too many.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        let blocks = elements.is_multiple_of(self.elements()).then_some(elements / self.elements())?;
        blocks.checked_mul(self.bytes())
    }

    /// Words of 32 bits that a matrix fills; `None` if its rows are not whole blocks, or too long.
    pub fn words(self, rows: usize, columns: usize) -> Option<usize> {
        Some(self.bytes_of(columns)?.checked_mul(rows)?.div_ceil(4))
    }

    pub fn name(self) -> &'static str {
        match self {
            Blocks::Q4_0 => "Q4_0",
            Blocks::Q4_1 => "Q4_1",
            Blocks::Q5_0 => "Q5_0",
            Blocks::Q5_1 => "Q5_1",
            Blocks::Q8_0 => "Q8_0",
            Blocks::Q4K => "Q4_K",
            Blocks::Q5K => "Q5_K",
            Blocks::Q6K => "Q6_K",
        }
    }

    /// Decodes `out.len() / elements` whole blocks; anything beyond the shorter of the two is left unchanged. Inlined, so that
    /// a caller that is compiled for more instructions decodes with them.
    #[inline(always)]
    pub fn decode(self, blocks: &[u8], out: &mut [f32]) {
        match self {
            Blocks::Q4_0 => each(blocks, out, by32::q4_0),
            Blocks::Q4_1 => each(blocks, out, by32::q4_1),
            Blocks::Q5_0 => each(blocks, out, by32::q5_0),
            Blocks::Q5_1 => each(blocks, out, by32::q5_1),
            Blocks::Q8_0 => each(blocks, out, by32::q8_0),
            Blocks::Q4K => each(blocks, out, by256::q4_k),
            Blocks::Q5K => each(blocks, out, by256::q5_k),
            Blocks::Q6K => each(blocks, out, by256::q6_k),
        }
    }
}

/// Rounds values to blocks of Q8_0, bit for bit as in llama.cpp's reference; an incomplete last block is left out.
pub fn encode_q8_0(values: &[f32]) -> Vec<u8> {
    values.as_chunks().0.iter().flat_map(by32::encode_q8_0).collect()
}

/// Rounds values to blocks of Q4_K, by the method of llama.cpp's reference; an incomplete last block is left out.
pub fn encode_q4_k(values: &[f32]) -> Vec<u8> {
    values.as_chunks().0.iter().flat_map(by256::encode_q4_k).collect()
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[inline(always)]
fn each<const BYTES: usize, const ELEMENTS: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, out) = (blocks.as_chunks().0, out.as_chunks_mut().0);
    blocks.iter().zip(out).for_each(|(block, values)| decode(block, values));
}

/// The little-endian f16 at byte `at`, as f32.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Normal numbers, far from zero, alike, and all zero: a group is a straight line of 16 numbers between its least and its
    /// largest value, whose ends are rounded to a 63rd of the block's, and scales to f16.
    #[test]
    fn q4_k_is_off_by_half_a_step_and_what_its_scales_lose() {
        let wave = |i: usize| (i as f32 * 0.7).sin() + 0.3 * (i as f32 * 1.9).cos();
        let blocks: [fn(usize, f32) -> f32; 5] =
            [|_, x| x, |_, x| 0.01 * x - 3.0, |i, x| x * (i / 32) as f32, |_, _| 0.5, |_, _| 0.0];
        for (number, block) in blocks.into_iter().enumerate() {
            let values: Vec<f32> = (0..512).map(|i| block(i, wave(i))).collect();
            let bytes = encode_q4_k(&values);
            assert_eq!(bytes.len(), 2 * Blocks::Q4K.bytes());
            let mut decoded = vec![f32::NAN; 512];
            Blocks::Q4K.decode(&bytes, &mut decoded);
            for (of_block, decoded) in values.chunks(256).zip(decoded.chunks(256)) {
                let span = |x: &[f32]| x.iter().copied().fold(0.0, f32::max) - x.iter().copied().fold(0.0, f32::min);
                let widest = of_block.chunks(32).map(span).fold(0.0, f32::max);
                let lowest = of_block.iter().copied().fold(0.0, f32::min).abs();
                for (x, y) in of_block.chunks(32).zip(decoded.chunks(32)) {
                    // The fit minimises the sum of squares, so that single values may be off by a whole step.
                    let bound = span(x) / 15.0 + (widest + lowest) / 63.0 + (widest + lowest) / 1024.0;
                    let off = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                    assert!(off <= bound, "{number}: {off} above {bound}");
                }
            }
        }
    }

    /// `testdata/blocks.json` is made by `testdata/make_blocks.py` with the Python package `gguf`.
    #[test]
    fn values_are_those_of_the_reference_bit_for_bit() {
        let golden: Value = serde_json::from_str(include_str!("../testdata/blocks.json")).unwrap();
        for format in Blocks::ALL {
            let case = &golden[format.name()];
            let text = |key: &str| case[key].as_str().unwrap();
            let hex = |text: &str| -> Vec<u8> {
                text.as_bytes()
                    .chunks(2)
                    .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                    .collect()
            };
            let (bytes, expected) = (hex(text("blocks")), hex(text("values")));
            let blocks = bytes.len() / format.bytes();
            assert!(blocks >= 4 && bytes.len() == blocks * format.bytes(), "{format}");
            let mut values = vec![f32::NAN; blocks * format.elements()];
            format.decode(&bytes, &mut values);
            let got: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert!(got == expected, "{format}: {values:?}");
            if format == Blocks::Q8_0 {
                let floats: Vec<f32> =
                    hex(text("floats")).as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
                assert_eq!(encode_q8_0(&floats), hex(text("rounded")));
            }
        }
    }
}
