//! Converts between little-endian bytes on disk and f32 values.

use half::{bf16, f16};
use sparta_graph::DType;

/// Values of a tensor as f32; exact for every float dtype. `None` for integer dtypes.
pub fn to_f32(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::BF16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::U32 => return None,
    })
}

/// The flat index of the first NaN or infinity in a float tensor. Only exponents are tested, a block at a time, which
/// costs little compared with copying the bytes.
pub fn first_not_finite(dtype: DType, bytes: &[u8]) -> Option<usize> {
    fn first<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
        let mut blocks = bytes.as_chunks::<N>().0.chunks(1 << 12).enumerate();
        // No early exit inside a block, so that it compiles to one loop of vector instructions.
        let (i, block) = blocks.find(|(_, block)| block.iter().fold(false, |any, value| any | bad(value)))?;
        Some((i << 12) + block.iter().position(bad)?)
    }
    let all = |bits: u32, mask: u32| bits & mask == mask;
    match dtype {
        DType::F32 => first::<4>(bytes, |b| all(u32::from_le_bytes(*b), 0x7f80_0000)),
        DType::BF16 => first::<2>(bytes, |b| all(u16::from_le_bytes(*b).into(), 0x7f80)),
        DType::F16 => first::<2>(bytes, |b| all(u16::from_le_bytes(*b).into(), 0x7c00)),
        DType::U32 => None,
    }
}

/// Bytes of f32 values stored as `dtype`, rounded to nearest, ties to even. `None` for integer dtypes.
pub fn from_f32(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    Some(match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::U32 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_where_the_type_can_hold_them() {
        let values = [0.0, -1.5, 0.007_812_5, 240.0];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let bytes = from_f32(dtype, &values).unwrap();
            assert_eq!(bytes.len(), values.len() * dtype.size());
            assert_eq!(to_f32(dtype, &bytes).unwrap(), values);
        }
        assert!(to_f32(DType::U32, &[0; 4]).is_none());
    }

    #[test]
    fn values_that_are_not_finite_are_found() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 4095, 4096, 9999] {
                    let mut values = vec![-60000.0; 10_000];
                    assert_eq!(first_not_finite(dtype, &from_f32(dtype, &values).unwrap()), None);
                    values[at] = bad;
                    assert_eq!(first_not_finite(dtype, &from_f32(dtype, &values).unwrap()), Some(at));
                }
            }
        }
        assert_eq!(first_not_finite(DType::F32, &f32::MAX.to_le_bytes()), None);
        assert_eq!(first_not_finite(DType::U32, &[0xff; 4]), None);
    }

    #[test]
    fn bf16_rounds_ties_to_even() {
        // Halfway between 1 and 1 + 2^-7, and between 1 + 2^-7 and 1 + 2^-6.
        let bytes = from_f32(DType::BF16, &[1.0 + 0.003_906_25, 1.0 + 0.011_718_75]).unwrap();
        assert_eq!(to_f32(DType::BF16, &bytes).unwrap(), [1.0, 1.015_625]);
    }
}
