//! The sizes that the page headers of a parquet file declare, read before any page is unpacked: a few kilobytes can
//! unpack to gigabytes. Headers are structs in Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>,
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>).

use parquet::file::metadata::ColumnChunkMetaData;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// The most bytes of an unpacked page. Writers start a new page at about 1 MiB, which they check every thousand texts
/// or so.
const LARGEST_PAGE: usize = 256 << 20;
/// The most values of a column of lists in a row group, which may hold a million rows.
const MOST_VALUES: u64 = 1 << 26;
/// The deepest nesting of structs in a header.
const DEPTH: usize = 8;

/// Checks the pages of a column chunk by their headers.
///
/// Errors: a chunk outside of the file, a malformed header, a page above 256 MiB, more values than lists may have.
pub(crate) fn check(file: &File, chunk: &ColumnChunkMetaData) -> Result<(), String> {
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let (Ok(start), Ok(left)) = (u64::try_from(start), u64::try_from(chunk.compressed_size())) else {
        return Err("a column begins or ends before the file".into());
    };
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let mut pages = Pages { reader, left };
    let lists = chunk.column_descr().max_rep_level() > 0;
    let mut values = 0u64;
    while pages.left > 0 {
        let Page { size, values: more } = pages.next_page()?;
        values = values.saturating_add(more);
        if lists && values > MOST_VALUES {
            return Err(format!("the lists of a row group have {values} values, at most {MOST_VALUES} are allowed"));
        }
        if size > LARGEST_PAGE {
            return Err(format!("a page unpacks to {size} bytes, at most {LARGEST_PAGE} are allowed"));
        }
    }
    Ok(())
}

/// What a header promises.
#[derive(Debug, PartialEq)]
struct Page {
    /// Bytes, unpacked.
    size: usize,
    /// 0 for a dictionary.
    values: u64,
}

struct Pages<'a> {
    reader: BufReader<&'a File>,
    /// Bytes up to the end of the chunk.
    left: u64,
}

impl Pages<'_> {
    /// Reads a header and skips its page.
    fn next_page(&mut self) -> Result<Page, String> {
        let (mut unpacked, mut packed, mut values) = (None, None, 0);
        let mut id = 0;
        while let Some((field, kind)) = self.field(id)? {
            id = field;
            match (field, kind) {
                (2, I32) => unpacked = Some(self.integer()?),
                (3, I32) => packed = Some(self.integer()?),
                // A data page of either version.
                (5 | 8, STRUCT) => values = self.first_integer()?,
                _ => self.skip(kind, DEPTH)?,
            }
        }
        let size = |n: Option<i64>| n.and_then(|n| usize::try_from(n).ok()).ok_or("a page header has no valid size");
        let (unpacked, packed) = (size(unpacked)?, size(packed)?);
        self.pass(packed as u64)?;
        Ok(Page { size: unpacked, values })
    }

    /// The first field of a struct, a count.
    fn first_integer(&mut self) -> Result<u64, String> {
        let (mut id, mut found) = (0, 0);
        while let Some((field, kind)) = self.field(id)? {
            id = field;
            match (field, kind) {
                (1, I32) => {
                    found = u64::try_from(self.integer()?).map_err(|_| "a page has a negative number of values")?
                }
                _ => self.skip(kind, DEPTH)?,
            }
        }
        Ok(found)
    }

    /// Id and type of the next field of a struct, after the field `last`; `None` at its end.
    fn field(&mut self, last: i64) -> Result<Option<(i64, u8)>, String> {
        let byte = self.byte()?;
        match (byte >> 4, byte & 15) {
            (_, 0) => Ok(None),
            (0, kind) => Ok(Some((self.integer()?, kind))),
            (delta, kind) => Ok(Some((last.saturating_add(delta.into()), kind))),
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        let depth = depth.checked_sub(1).ok_or("a page header is nested too deeply")?;
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.pass(1),
            I16 | I32 | I64 => self.varint().map(drop),
            DOUBLE => self.pass(8),
            BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            STRUCT => {
                let mut id = 0;
                while let Some((field, kind)) = self.field(id)? {
                    id = field;
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
            // Page headers have no lists, sets and maps.
            other => Err(format!("a page header has a field of the unexpected type {other}")),
        }
    }

    fn integer(&mut self) -> Result<i64, String> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(n);
            }
        }
        Err("a page header has a number of more than 64 bits".into())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.left = self.left.checked_sub(1).ok_or("a page header is cut off")?;
        let mut byte = [0];
        self.reader.read_exact(&mut byte).map_err(|e| e.to_string())?;
        Ok(byte[0])
    }

    fn pass(&mut self, bytes: u64) -> Result<(), String> {
        self.left = self.left.checked_sub(bytes).ok_or("a page ends outside of its column")?;
        let bytes = i64::try_from(bytes).map_err(|e| e.to_string())?;
        self.reader.seek_relative(bytes).map_err(|e| e.to_string())
    }
}

/// Types of the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const STRUCT: u8 = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn page(bytes: &[u8]) -> Result<Page, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        Pages { reader: BufReader::new(&file), left: bytes.len() as u64 }.next_page()
    }

    #[test]
    fn sizes_are_read_and_other_fields_skipped() {
        // type 0, unpacked 1000, packed 3, crc, and a data page header with statistics that hold a binary.
        let mut header =
            vec![0x15, 0, 0x15, 0xd0, 0x0f, 0x15, 6, 0x15, 9, 0x1c, 0x15, 2, 0x4c, 0x18, 2, b'a', b'b', 0, 0];
        header.push(0);
        assert_eq!(page(&[&header[..], &[1, 2, 3]].concat()), Ok(Page { size: 1000, values: 1 }));
        assert!(page(&[&header[..], &[1, 2]].concat()).unwrap_err().contains("outside of its column"));
        assert!(page(&header[..5]).unwrap_err().contains("cut off"));
    }

    #[test]
    fn impossible_headers_are_errors() {
        assert!(page(&[0]).unwrap_err().contains("no valid size"));
        // A negative size.
        assert!(page(&[0x25, 1, 0x15, 0, 0]).unwrap_err().contains("no valid size"));
        assert!(page(&[0x1c; 20]).unwrap_err().contains("nested"));
        assert!(page(&[0x15, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]).unwrap_err().contains("64 bits"));
        assert!(page(&[0x19, 0]).unwrap_err().contains("type 9"));
    }
}
