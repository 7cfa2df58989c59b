//! Where weights come from: all that models and training need from files.

use crate::convert::{first_not_finite, from_f32, to_f32};
use crate::{Error, Result};
use sparta_graph::blocks::{encode_q4_k, encode_q8_0};
use sparta_graph::{Blocks, DType};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// A weight: its values row-major and little-endian, decoded on demand if they are stored in another form.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The type of the values.
    pub dtype: DType,
    pub shape: &'a [usize],
    stored: Storage,
    bytes: &'a [u8],
    arrangement: Arrangement,
    /// The blocks that plain values are rounded to when they are read.
    rounded: Option<Blocks>,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Plain(DType),
    /// Quantized rows of whole blocks, whose values are f32.
    Blocks(Blocks),
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Plain(dtype) => dtype.fmt(f),
            Storage::Blocks(blocks) => blocks.fmt(f),
        }
    }
}

impl Storage {
    /// Bytes of this many elements, which must be whole blocks; `None` if they exceed usize.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        match self {
            Storage::Plain(dtype) => elements.checked_mul(dtype.size()),
            Storage::Blocks(blocks) => (elements / blocks.elements()).checked_mul(blocks.bytes()),
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

impl Arrangement {
    /// Rows of this many bytes, as the file stores them.
    pub fn arrange(self, row_bytes: usize, rows: &[u8]) -> Vec<u8> {
        let mut out = vec![0; rows.len()];
        for (row, bytes) in rows.chunks(row_bytes.max(1)).enumerate() {
            let begin = self.place(row) * row_bytes;
            if let Some(out) = out.get_mut(begin..begin + bytes.len()) {
                out.copy_from_slice(bytes);
            }
        }
        out
    }
}

impl<'a> TensorView<'a> {
    /// A view of plain values, of any alignment.
    pub fn new(dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> TensorView<'a> {
        TensorView::stored(Storage::Plain(dtype), shape, bytes, Arrangement::None)
    }

    /// A view of values that may be stored in blocks and rearranged.
    pub fn stored(stored: Storage, shape: &'a [usize], bytes: &'a [u8], arrangement: Arrangement) -> TensorView<'a> {
        let dtype = match stored {
            Storage::Plain(dtype) if arrangement != Arrangement::PlusOne => dtype,
            _ => DType::F32,
        };
        TensorView { dtype, shape, stored, bytes, arrangement, rounded: None }
    }

    /// The same view with quantized values rounded to this float type; other values keep theirs.
    pub fn decoded_as(self, dtype: DType) -> TensorView<'a> {
        if self.blocks().is_some() { TensorView { dtype, ..self } } else { self }
    }

    /// The same with plain values rounded to these blocks, into which rows must divide; its values are f32 then.
    pub fn rounded_to(self, blocks: Blocks) -> TensorView<'a> {
        let plain =
            matches!(self.stored, Storage::Plain(dtype) if dtype.is_float()) && self.arrangement == Arrangement::None;
        let whole = self.shape.last().is_some_and(|columns| columns.is_multiple_of(blocks.elements()));
        match plain && whole {
            true => TensorView { dtype: DType::F32, rounded: Some(blocks), ..self },
            false => self,
        }
    }

    /// The kind of blocks that its values are stored in, if any.
    pub fn blocks(&self) -> Option<Blocks> {
        match (self.stored, self.arrangement) {
            (Storage::Blocks(blocks), Arrangement::None | Arrangement::RotatedPairs { .. }) => Some(blocks),
            _ => self.rounded,
        }
    }

    /// Its rows in blocks. `None`: it is not made of blocks.
    pub fn in_blocks(&self) -> Option<Cow<'a, [u8]>> {
        let blocks = self.blocks()?;
        if self.rounded.is_some() {
            return Some(Cow::Owned(self.encoded(blocks)?));
        }
        if self.arrangement == Arrangement::None {
            return Some(Cow::Borrowed(self.bytes));
        }
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        let row_bytes = blocks.bytes_of(width)?;
        let mut out = Vec::with_capacity(self.bytes.len());
        for row in 0..self.numel() / width {
            let begin = self.arrangement.place(row) * row_bytes;
            out.extend_from_slice(self.bytes.get(begin..begin + row_bytes)?);
        }
        Some(Cow::Owned(out))
    }

    /// [`TensorView::in_blocks`] for other values: an element that differs from the stored one becomes the nearest that
    /// its block can hold.
    pub fn changed_to(&self, values: &[f32]) -> Option<Vec<u8>> {
        let (blocks, own) = (self.blocks()?, self.to_f32()?);
        let mut bytes = self.in_blocks()?.into_owned();
        let n = blocks.elements();
        for (block, (own, values)) in bytes.chunks_exact_mut(blocks.bytes()).zip(own.chunks(n).zip(values.chunks(n))) {
            let changed = own.iter().zip(values).enumerate().filter(|(_, (own, value))| own != value);
            changed.for_each(|(i, (_, &value))| blocks.put(block, i, value));
        }
        Some(bytes)
    }

    /// All values rounded to blocks, by as many threads as the machine has.
    fn encoded(&self, blocks: Blocks) -> Option<Vec<u8>> {
        let plain = TensorView::new(self.stored_dtype(), self.shape, self.bytes);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let count = self.numel() / blocks.elements();
        let size = count.div_ceil(threads).max(1);
        let encode = |first: usize| {
            let last = count.min(first + size);
            let values = plain.part_f32(first * blocks.elements()..last * blocks.elements())?;
            encode(blocks, &values)
        };
        let parts: Vec<Option<Vec<u8>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..count).step_by(size).map(|first| scope.spawn(move || encode(first))).collect();
            workers.into_iter().map(|worker| worker.join().ok().flatten()).collect()
        });
        Some(parts.into_iter().collect::<Option<Vec<_>>>()?.concat())
    }

    /// The flat index of the first NaN or infinity among its values, `bytes`, and the values that they are rounded
    /// from.
    fn first_not_finite(&self, bytes: &[u8]) -> Option<usize> {
        let from = self.rounded.and_then(|_| first_not_finite(self.stored_dtype(), self.bytes));
        from.or_else(|| first_not_finite(self.dtype, bytes))
    }

    fn stored_dtype(&self) -> DType {
        match self.stored {
            Storage::Plain(dtype) => dtype,
            Storage::Blocks(_) => DType::F32,
        }
    }

    /// The values at ascending flat indices, in `dtype`. `None`: there is no such element.
    pub fn pick(&self, indices: &[u32]) -> Option<Vec<u8>> {
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        let size = self.dtype.size();
        let mut out = Vec::with_capacity(indices.len() * size);
        for of_row in indices.chunk_by(|&a, &b| a as usize / width == b as usize / width) {
            let begin = of_row.first().map_or(0, |&i| i as usize / width * width);
            let row = self.part(begin..begin + width)?;
            for &i in of_row {
                let at = (i as usize - begin) * size;
                out.extend_from_slice(row.get(at..at + size)?);
            }
        }
        Some(out)
    }

    /// The bytes as they are in the file.
    pub fn raw(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn format(&self) -> Storage {
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
        let all = 0..self.numel();
        if let (Some(blocks), Some(encoded)) = (self.rounded, self.in_blocks()) {
            let view = TensorView::stored(Storage::Blocks(blocks), self.shape, &encoded, Arrangement::None);
            return Cow::Owned(view.decoded_as(self.dtype).part(all).unwrap_or_default().into_owned());
        }
        // The constructors' callers hold as many bytes as the shape needs.
        self.part(all).unwrap_or_default()
    }

    /// All values as f32; exact for every float type. `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.rounded {
            Some(_) => to_f32(self.dtype, &self.bytes()),
            None => self.part_f32(0..self.numel()),
        }
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
        if let (Storage::Plain(dtype), Arrangement::None, None) = (self.stored, self.arrangement, self.rounded) {
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
        if let Some(blocks) = self.rounded {
            return self.push_rounded(blocks, row * width + columns.start..row * width + columns.end, out);
        }
        let begin = self.stored.bytes(row * width)?;
        match self.stored {
            Storage::Plain(dtype) => {
                let bytes = begin + columns.start * dtype.size()..begin + columns.end * dtype.size();
                let bytes = self.bytes.get(bytes)?;
                match self.arrangement {
                    Arrangement::PlusOne => push(out, self.dtype, to_f32(dtype, bytes)?, 1.0)?,
                    _ => out.extend_from_slice(bytes),
                }
            }
            Storage::Blocks(blocks) => {
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

    /// Appends elements of a row that are rounded to blocks.
    fn push_rounded(&self, blocks: Blocks, elements: Range<usize>, out: &mut Vec<u8>) -> Option<()> {
        let n = blocks.elements();
        let whole = elements.start / n * n..elements.end.div_ceil(n) * n;
        let size = self.stored_dtype().size();
        let plain = to_f32(self.stored_dtype(), self.bytes.get(whole.start * size..whole.end * size)?)?;
        let mut values = vec![0.0; plain.len()];
        blocks.decode(&encode(blocks, &plain)?, &mut values);
        push(out, self.dtype, values.get(elements.start - whole.start..elements.end - whole.start)?.to_vec(), 0.0)
    }
}

/// Rounds values to blocks. `None`: there is no encoder for them.
fn encode(blocks: Blocks, values: &[f32]) -> Option<Vec<u8>> {
    match blocks {
        Blocks::Q8_0 => Some(encode_q8_0(values)),
        Blocks::Q4K => Some(encode_q4_k(values)),
        _ => None,
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
        match view.first_not_finite(&bytes) {
            None => Ok((view.dtype, bytes)),
            Some(at) => Err(damaged(&origin, name, at)),
        }
    }

    /// The blocks of a tensor that is made of them, all of its values checked.
    ///
    /// Errors: no such tensor; NaN or infinity.
    fn finite_blocks(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let origin = self.origin();
        let missing = || Error::Weights(format!("{origin}: the tensor `{name}` is missing, or not in blocks"));
        let view = self.get(name).ok_or_else(missing)?;
        let (blocks, bytes) = (view.blocks().ok_or_else(missing)?, view.in_blocks().ok_or_else(missing)?);
        let mut values = vec![0f32; blocks.elements()];
        for (i, block) in bytes.chunks_exact(blocks.bytes()).enumerate() {
            blocks.decode(block, &mut values);
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(damaged(&origin, name, i * values.len() + at));
            }
        }
        match view.first_not_finite(&[]) {
            None => Ok(bytes),
            Some(at) => Err(damaged(&origin, name, at)),
        }
    }
}

fn damaged(origin: &str, name: &str, at: usize) -> Error {
    Error::Weights(format!(
        "{origin}: the weight {name} holds NaN or infinity at {at}; the model is damaged: fetch it again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_equals_that_region_of_the_whole() {
        // Six rows of two blocks whose bytes count up, so that every element differs.
        let shape = [6, 64];
        let bytes: Vec<u8> = (0..12u8)
            .flat_map(|block| [&half::f16::from_f32(f32::from(block) + 1.0).to_le_bytes()[..], &[1; 32]].concat())
            .collect();
        let stored = Storage::Blocks(Blocks::Q8_0);
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
    fn arrangements_of_a_file_are_undone() {
        let bytes = from_f32(DType::F16, &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]).unwrap();
        let pairs = Arrangement::RotatedPairs { head_rows: 6 };
        let view = TensorView::stored(Storage::Plain(DType::F16), &[6, 1], &bytes, pairs);
        assert_eq!((view.dtype, view.to_f32().unwrap()), (DType::F16, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        let norm = TensorView::stored(Storage::Plain(DType::F16), &[6], &bytes, Arrangement::PlusOne);
        assert_eq!(pairs.apply(1, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(pairs.arrange(1, &[0, 1, 2, 3, 4, 5]), [0, 3, 1, 4, 2, 5]);
        assert_eq!(Arrangement::PlusOne.apply(2, &[0.5, -1.0]), [1.5, 0.0]);
        assert_eq!((norm.dtype, norm.to_f32().unwrap()), (DType::F32, vec![-1.0, 2.0, 0.0, 3.0, 1.0, 4.0]));
        let blocks = [0x00, 0x3c].into_iter().chain((0..32).map(|q| 97 + q % 31)).collect::<Vec<u8>>();
        let exact = TensorView::stored(Storage::Blocks(Blocks::Q8_0), &[1, 32], &blocks, Arrangement::None);
        let rounded = exact.decoded_as(DType::BF16);
        assert_eq!((rounded.dtype, rounded.size()), (DType::BF16, 64));
        assert_eq!(*rounded.bytes(), *from_f32(DType::BF16, &exact.to_f32().unwrap()).unwrap());
        let mut values = exact.to_f32().unwrap();
        assert_eq!(exact.changed_to(&values).unwrap(), blocks);
        values[7] += 3.4;
        let changed = exact.changed_to(&values).unwrap();
        assert_eq!((changed[9], changed.iter().zip(&blocks).filter(|(a, b)| a != b).count()), (blocks[9] + 3, 1));
        let short = TensorView::new(DType::F16, &[7], &bytes);
        assert!(short.part(0..7).is_none() && short.to_f32().is_none());
    }
}
