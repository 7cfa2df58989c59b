use half::{bf16, f16};
use sparta_graph::DType;
use sparta_graph::graph::TensorType;

/// A tensor on the host. Its values are exact in `ty.dtype`.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub ty: TensorType,
    pub values: Vec<f64>,
}

/// The nearest number of a type, ties to even.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::BF16 => bf16::from_f32(odd(x)).to_f64(),
        DType::F16 => f16::from_f32(odd(x)).to_f64(),
        DType::U32 => f64::from(x as u32),
    }
}

/// The f32 whose rounding to 16 bits is that of x: where f32 cannot hold x, its neighbour with an odd last bit. (The
/// half crate's own conversions from f64 ignore the bits below f32's.)
fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !nearest.is_finite() {
        return nearest;
    }
    let away = f64::from(nearest).abs() > x.abs();
    f32::from_bits((nearest.to_bits() - u32::from(away)) | 1)
}

impl Tensor {
    /// Rounds the values to the type.
    pub fn new(dtype: DType, shape: &[usize], values: Vec<f64>) -> Self {
        let ty = TensorType::new(dtype, shape);
        assert_eq!(ty.numel(), values.len(), "values of shape {shape:?}");
        Tensor { ty, values: values.into_iter().map(|x| round(dtype, x)).collect() }
    }

    pub fn zeros(ty: TensorType) -> Self {
        let values = vec![0.0; ty.numel()];
        Tensor { ty, values }
    }

    /// Little-endian bytes in the tensor's type.
    pub fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.ty.dtype {
            DType::F32 => values.flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::BF16 => values.flat_map(|&x| bf16::from_f32(odd(x)).to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|&x| f16::from_f32(odd(x)).to_le_bytes()).collect(),
            DType::U32 => values.flat_map(|&x| (x as u32).to_le_bytes()).collect(),
        }
    }

    /// The inverse of [`Tensor::bytes`].
    pub fn from_bytes(ty: TensorType, bytes: &[u8]) -> Self {
        fn decode<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks().0.iter().map(|&b| number(b)).collect()
        }
        let values = match ty.dtype {
            DType::F32 => decode(bytes, |b| f64::from(f32::from_le_bytes(b))),
            DType::BF16 => decode(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            DType::F16 => decode(bytes, |b| f16::from_le_bytes(b).to_f64()),
            DType::U32 => decode(bytes, |b| f64::from(u32::from_le_bytes(b))),
        };
        Tensor { ty, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::U32] {
            let tensor = Tensor::new(dtype, &[3], vec![0.1, 1.0, 777.7]);
            assert_eq!(Tensor::from_bytes(tensor.ty.clone(), &tensor.bytes()).values, tensor.values);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(round(DType::BF16, 1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(round(DType::BF16, 1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        for tiny in [2f64.powi(-21), 2f64.powi(-40)] {
            assert_eq!(round(DType::BF16, 1.0 + 1.0 / 256.0 + tiny), 1.0 + 2.0 / 256.0, "not a tie");
            assert_eq!(round(DType::BF16, -1.0 - 1.0 / 256.0 + tiny), -1.0, "not a tie");
        }
    }
}
