//! Elements of blocks that are written alone, under the scales that the blocks have.

use super::{Blocks, by256::affine, half};

/// How a block holds an element: as the number q of `scale * q + offset`.
struct Place {
    scale: f32,
    offset: f32,
    /// The largest q.
    most: u8,
    /// Where the bits of q lie: a byte of the block, the first bit there, and how many; the lowest bits first.
    bits: [(usize, usize, usize); 2],
}

impl Blocks {
    /// Sets element `i` of a block to the number nearest to `x` that its scales allow. The other elements stay.
    pub fn put(self, block: &mut [u8], i: usize, x: f32) {
        let Place { scale, offset, most, bits } = self.place(block, i);
        let q = if scale == 0.0 { 0.0 } else { ((x - offset) / scale).round_ties_even() };
        let mut q = q.clamp(0.0, most.into()) as u8;
        if self == Blocks::Q8_0 {
            // Stored as a signed number.
            q ^= 128;
        }
        for (byte, first, count) in bits {
            let mask = ((1u16 << count) - 1) as u8;
            block[byte] = block[byte] & !(mask << first) | (q & mask) << first;
            q = (u16::from(q) >> count) as u8;
        }
    }

    fn place(self, block: &[u8], i: usize) -> Place {
        // Of 32 elements the first 16 are in the low halves of the bytes.
        let nibble = |begin: usize| (begin + i % 16, 4 * (i / 16), 4);
        let none = (0, 0, 0);
        let place = |scale: f32, offset: f32, most: u8, bits| Place { scale, offset, most, bits };
        match self {
            Blocks::Q4_0 => place(half(block, 0), -8.0 * half(block, 0), 15, [nibble(2), none]),
            Blocks::Q4_1 => place(half(block, 0), half(block, 2), 15, [nibble(4), none]),
            Blocks::Q5_0 => place(half(block, 0), -16.0 * half(block, 0), 31, [nibble(6), (2 + i / 8, i % 8, 1)]),
            Blocks::Q5_1 => place(half(block, 0), half(block, 2), 31, [nibble(8), (4 + i / 8, i % 8, 1)]),
            Blocks::Q8_0 => place(half(block, 0), -128.0 * half(block, 0), 255, [(2 + i, 0, 8), none]),
            Blocks::Q4K | Blocks::Q5K => {
                let group = i / 32;
                let (scale, less) = affine(block)[group];
                let nibble = |begin: usize| (begin + 32 * (group / 2) + i % 32, 4 * (group % 2), 4);
                match self {
                    Blocks::Q4K => place(scale, -less, 15, [nibble(16), none]),
                    _ => place(scale, -less, 31, [nibble(48), (16 + i % 32, group, 1)]),
                }
            }
            Blocks::Q6K => {
                let (n, run, within) = (i / 128, i / 32 % 4, i % 32);
                let scale = half(block, 208) * f32::from(block[192 + i / 16] as i8);
                let low = (64 * n + 32 * (run % 2) + within, 4 * (run / 2), 4);
                place(scale, -32.0 * scale, 63, [low, (128 + 32 * n + within, 2 * run, 2)])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of arbitrary bits with scales near 0.1, some of them negative.
    fn blocks(format: Blocks) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        let mut bytes: Vec<u8> = (0..8 * format.bytes()).map(|_| next() as u8).collect();
        let scale_at = if format == Blocks::Q6K { 208 } else { 0 };
        for (i, block) in bytes.chunks_exact_mut(format.bytes()).enumerate() {
            let scale = half::f16::from_f32([0.1, -0.07, 0.0][i % 3]).to_le_bytes();
            block[scale_at..scale_at + 2].copy_from_slice(&scale);
            if matches!(format, Blocks::Q4_1 | Blocks::Q5_1 | Blocks::Q4K | Blocks::Q5K) {
                block[2..4].copy_from_slice(&half::f16::from_f32(0.3).to_le_bytes());
            }
        }
        bytes
    }

    fn decoded(format: Blocks, block: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; format.elements()];
        format.decode(block, &mut values);
        values
    }

    #[test]
    fn an_element_becomes_the_nearest_and_the_others_stay() {
        for format in Blocks::ALL {
            for block in blocks(format).chunks_exact(format.bytes()) {
                let before = decoded(format, block);
                for i in (0..format.elements()).step_by(5) {
                    let mut same = block.to_vec();
                    format.put(&mut same, i, before[i]);
                    assert_eq!(decoded(format, &same), before, "{format} {i}");
                    // All that the block can hold there: numbers from far below to far above.
                    let mut able: Vec<f32> = Vec::new();
                    for step in -300..=300 {
                        let mut other = block.to_vec();
                        format.put(&mut other, i, before[i] + step as f32 * format.place(block, i).scale);
                        able.push(decoded(format, &other)[i]);
                    }
                    able.sort_by(f32::total_cmp);
                    able.dedup();
                    let place = format.place(block, i);
                    assert_eq!(
                        able.len(),
                        if place.scale == 0.0 { 1 } else { usize::from(place.most) + 1 },
                        "{format} {i}"
                    );
                    for x in [before[i] + 0.013, before[i] - 0.4, 1e9, -1e9] {
                        let mut changed = block.to_vec();
                        format.put(&mut changed, i, x);
                        let after = decoded(format, &changed);
                        let nearest = able.iter().map(|y| (y - x).abs()).fold(f32::MAX, f32::min);
                        assert!(
                            (after[i] - x).abs() <= nearest * (1.0 + 1e-4) + 1e-6,
                            "{format} {i}: {x} is {}",
                            after[i]
                        );
                        let others = after.iter().zip(&before).enumerate().filter(|(k, (a, b))| *k != i && a != b);
                        assert_eq!(others.count(), 0, "{format} {i}");
                    }
                }
            }
        }
    }
}
