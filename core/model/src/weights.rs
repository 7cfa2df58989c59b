//! Where weights come from: all that models and training need from files.

use crate::convert::{first_not_finite, from_f32, to_f32};
use crate::{Error, Result};
use sparta_graph::{Blocks, DType};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// A weight: its values row-major and little-endian, decoded on demand where they are stored in another form.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The type of the values.
    pub dtype: DType,
    pub shape: &'a [usize],
    stored: Stored,
    bytes: &'a [u8],
    arrangement: Arrangement,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Plain(DType),
    /// Quantized rows of whole blocks, whose values are f32.
    Blocks(Blocks),
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::Plain(dtype) => dtype.fmt(f),
            Stored::Blocks(blocks) => blocks.fmt(f),
        }
    }
}

impl Stored {
    /// Bytes of this many elements, which must be whole blocks; `None` if they exceed usize.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        match self {
            Stored::Plain(dtype) => elements.checked_mul(dtype.size()),
            Stored::Blocks(blocks) => (elements / blocks.elements()).checked_mul(blocks.bytes()),
        }
    }
}

/// How a file rearranges the values of a weight, which reading undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    None,
    /// The n rows of each head are in the order 0, n/2, 1, n/2 + 1, ..., so that pairs rotated together are
    /// neighbours.
    RotatedPairs {
        head_rows: usize,
    },
    /// Values, which are f32, are one more than the weight's.
    PlusOne,
}

impl Arrangement {
    /// The file's position of a row.
    fn place(self, row: usize) -> usize {
        match self {
            Arrangement::RotatedPairs { head_rows } if head_rows >= 2 => {
                let (head, row, half) = (row / head_rows, row % head_rows, head_rows / 2);
                head * head_rows + row % half * 2 + row / half
            }
            _ => row,
        }
    }

    /// The values, in rows of this many columns, as a file arranges them.
    pub fn apply(self, columns: usize, values: &[f32]) -> Vec<f32> {
        let more = if self == Arrangement::PlusOne { 1.0 } else { 0.0 };
        let mut out = vec![0.0; values.len()];
        let columns = columns.max(1);
        for (row, values) in values.chunks(columns).enumerate() {
            let begin = self.place(row) * columns;
            if let Some(out) = out.get_mut(begin..begin + values.len()) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value + more);
            }
        }
        out
    }
}

impl<'a> TensorView<'a> {
    /// A view of plain values, of any alignment.
    pub fn new(dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> TensorView<'a> {
        TensorView::stored(Stored::Plain(dtype), shape, bytes, Arrangement::None)
    }

    /// A view of values that may be stored in blocks and rearranged.
    pub fn stored(stored: Stored, shape: &'a [usize], bytes: &'a [u8], arrangement: Arrangement) -> TensorView<'a> {
        let dtype = match stored {
            Stored::Plain(dtype) if arrangement != Arrangement::PlusOne => dtype,
            _ => DType::F32,
        };
        TensorView { dtype, shape, stored, bytes, arrangement }
    }

    /// The same view with quantized values rounded to this float type; other values keep theirs.
    pub fn decoded_as(self, dtype: DType) -> TensorView<'a> {
        match (self.stored, self.arrangement) {
            (Stored::Blocks(_), Arrangement::None | Arrangement::RotatedPairs { .. }) => TensorView { dtype, ..self },
            _ => self,
        }
    }

    /// The bytes as they are in the file.
    pub fn raw(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn format(&self) -> Stored {
        self.stored
    }

    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of all values.
    pub fn size(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// All values, in `dtype`.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        // The constructors' callers hold as many bytes as the shape needs.
        self.part(0..self.numel()).unwrap_or_default()
    }

    /// All values as f32; exact for every float type. `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.part_f32(0..self.numel())
    }

    /// A range of elements as f32. `None`: the range is out of bounds, or the values are integers.
    pub fn part_f32(&self, range: Range<usize>) -> Option<Vec<f32>> {
        to_f32(self.dtype, &self.part(range)?)
    }

    /// A range of elements in `dtype`. `None`: the range is out of bounds.
    pub fn part(&self, range: Range<usize>) -> Option<Cow<'a, [u8]>> {
        if range.start > range.end || range.end > self.numel() {
            return None;
        }
        if let (Stored::Plain(dtype), Arrangement::None) = (self.stored, self.arrangement) {
            return self.bytes.get(range.start * dtype.size()..range.end * dtype.size()).map(Cow::Borrowed);
        }
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        let mut out = Vec::with_capacity(range.len() * self.dtype.size());
        let mut at = range.start;
        while at < range.end {
            let (row, column) = (at / width, at % width);
            let end = width.min(column + range.end - at);
            self.push_row(self.arrangement.place(row), column..end, width, &mut out)?;
            at += end - column;
        }
        Some(Cow::Owned(out))
    }

    /// Appends some columns of a stored row.
    fn push_row(&self, row: usize, columns: Range<usize>, width: usize, out: &mut Vec<u8>) -> Option<()> {
        let begin = self.stored.bytes(row * width)?;
        match self.stored {
            Stored::Plain(dtype) => {
                let bytes = begin + columns.start * dtype.size()..begin + columns.end * dtype.size();
                let bytes = self.bytes.get(bytes)?;
                match self.arrangement {
                    Arrangement::PlusOne => push(out, self.dtype, to_f32(dtype, bytes)?, 1.0)?,
                    _ => out.extend_from_slice(bytes),
                }
            }
            Stored::Blocks(blocks) => {
                let n = blocks.elements();
                let whole = columns.start / n..columns.end.div_ceil(n);
                let bytes = self.bytes.get(begin + whole.start * blocks.bytes()..begin + whole.end * blocks.bytes())?;
                let mut values = vec![0.0; whole.len() * n];
                blocks.decode(bytes, &mut values);
                let less = if self.arrangement == Arrangement::PlusOne { 1.0 } else { 0.0 };
                let values = values.get(columns.start - whole.start * n..columns.end - whole.start * n)?;
                push(out, self.dtype, values.to_vec(), less)?;
            }
        }
        Some(())
    }
}

fn push(out: &mut Vec<u8>, dtype: DType, mut values: Vec<f32>, less: f32) -> Option<()> {
    values.iter_mut().for_each(|value| *value -= less);
    out.extend(from_f32(dtype, &values)?);
    Some(())
}

/// The tensors of a model by their Hugging Face names; those of the backbone begin with `model.`.
pub trait WeightSource {
    /// Where the weights are, for messages: a directory or an address.
    fn origin(&self) -> String;

    fn names(&self) -> Vec<&str>;

    fn get(&self, name: &str) -> Option<TensorView<'_>>;

    /// Releases the memory that reading a tensor took; it is read again when needed.
    fn forget(&self, _name: &str) {}

    /// The values of a tensor, all checked to be finite, and their type.
    ///
    /// Errors: no such tensor; NaN or infinity.
    fn finite(&self, name: &str) -> Result<(DType, Cow<'_, [u8]>)> {
        let origin = self.origin();
        let view = self.get(name).ok_or_else(|| Error::Weights(format!("{origin}: the tensor `{name}` is missing")))?;
        let bytes = view.bytes();
        match first_not_finite(view.dtype, &bytes) {
            None => Ok((view.dtype, bytes)),
            Some(at) => Err(Error::Weights(format!(
                "{origin}: the weight {name} holds NaN or infinity at {at}; the model is damaged: fetch it again"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_the_whole_has_there() {
        // Six rows of two blocks whose bytes count up, so that every element differs.
        let shape = [6, 64];
        let bytes: Vec<u8> = (0..12u8)
            .flat_map(|block| [&half::f16::from_f32(f32::from(block) + 1.0).to_le_bytes()[..], &[1; 32]].concat())
            .collect();
        let stored = Stored::Blocks(Blocks::Q8_0);
        for arrangement in [Arrangement::None, Arrangement::RotatedPairs { head_rows: 6 }, Arrangement::PlusOne] {
            let view = TensorView::stored(stored, &shape, &bytes, arrangement);
            let whole = view.to_f32().unwrap();
            assert_eq!((whole.len(), view.size()), (384, 4 * 384));
            for range in [0..384, 5..7, 60..70, 63..64, 100..330, 384..384] {
                assert_eq!(view.part_f32(range.clone()).unwrap(), whole[range]);
            }
            assert!(view.part(300..385).is_none());
        }
    }

    #[test]
    fn what_a_file_has_done_is_undone() {
        let bytes = from_f32(DType::F16, &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]).unwrap();
        let pairs = Arrangement::RotatedPairs { head_rows: 6 };
        let view = TensorView::stored(Stored::Plain(DType::F16), &[6, 1], &bytes, pairs);
        assert_eq!((view.dtype, view.to_f32().unwrap()), (DType::F16, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        let norm = TensorView::stored(Stored::Plain(DType::F16), &[6], &bytes, Arrangement::PlusOne);
        assert_eq!(pairs.apply(1, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(Arrangement::PlusOne.apply(2, &[0.5, -1.0]), [1.5, 0.0]);
        assert_eq!((norm.dtype, norm.to_f32().unwrap()), (DType::F32, vec![-1.0, 2.0, 0.0, 3.0, 1.0, 4.0]));
        let blocks = [0x00, 0x3c].into_iter().chain((0..32).map(|q| 97 + q % 31)).collect::<Vec<u8>>();
        let exact = TensorView::stored(Stored::Blocks(Blocks::Q8_0), &[1, 32], &blocks, Arrangement::None);
        let rounded = exact.decoded_as(DType::BF16);
        assert_eq!((rounded.dtype, rounded.size()), (DType::BF16, 64));
        assert_eq!(*rounded.bytes(), *from_f32(DType::BF16, &exact.to_f32().unwrap()).unwrap());
        let short = TensorView::new(DType::F16, &[7], &bytes);
        assert!(short.part(0..7).is_none() && short.to_f32().is_none());
    }
}
