//! Writes GGUF files of version 3, one tensor at a time.

use super::kinds::number;
use crate::{Error, Result};
use sparta_model::Storage;
use std::io::Write;
use std::path::Path;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    U32(u32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Type and value in encoded form, from [`super::Metadata::encoded`].
    Encoded(Vec<u8>),
}

/// Keys and values, in the order of the file.
pub type Fields = Vec<(String, Field)>;

/// A tensor, whose values are made when it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorOut {
    pub name: String,
    pub stored: Storage,
    /// Rows before columns.
    pub shape: Vec<usize>,
}

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;

impl Field {
    fn push(&self, out: &mut Vec<u8>) {
        let mut list = |kind: u32, count: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            Field::U32(x) => out.extend([4u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Field::F32(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Field::Flag(x) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*x));
            }
            Field::Text(x) => {
                out.extend(8u32.to_le_bytes());
                text(out, x);
            }
            Field::Texts(all) => {
                list(8, all.len());
                all.iter().for_each(|x| text(out, x));
            }
            Field::I32s(all) => {
                list(5, all.len());
                out.extend(all.iter().flat_map(|x| x.to_le_bytes()));
            }
            Field::F32s(all) => {
                list(6, all.len());
                out.extend(all.iter().flat_map(|x| x.to_le_bytes()));
            }
            Field::Encoded(bytes) => out.extend(bytes),
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Writes a file, called `path` in messages; `values` makes the bytes of each tensor, in order.
///
/// Errors: a number of bytes that does not match a tensor's shape and type; those of `values` and of the disk.
pub fn save(
    out: &mut impl Write,
    path: &Path,
    fields: &Fields,
    tensors: &[TensorOut],
    mut values: impl FnMut(&TensorOut) -> Result<Vec<u8>>,
) -> Result<()> {
    let size = |tensor: &TensorOut| tensor.stored.bytes(tensor.shape.iter().product());
    let mut header = [&b"GGUF"[..], &VERSION.to_le_bytes()].concat();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((fields.len() as u64).to_le_bytes());
    for (key, field) in fields {
        text(&mut header, key);
        field.push(&mut header);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| header.extend((n as u64).to_le_bytes()));
        header.extend(number(tensor.stored).unwrap_or_default().to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += size(tensor).unwrap_or_default().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&header).map_err(Error::io(path))?;
    for tensor in tensors {
        let mut bytes = values(tensor)?;
        if Some(bytes.len()) != size(tensor) {
            return Err(Error::Weights(format!(
                "{}: tensor `{}` of shape {:?} got {} bytes",
                path.display(),
                tensor.name,
                tensor.shape,
                bytes.len()
            )));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&bytes).map_err(Error::io(path))?;
    }
    Ok(())
}
