use crate::File;
use crate::memory::bytes;
use memmap2::Mmap;
use std::fs;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The bytes of a file: mapped, and so read from disk when needed, or in memory.
#[derive(Debug)]
pub enum Map {
    System(Mmap),
    Memory(Arc<Vec<u8>>),
}

impl Map {
    /// Errors: those of the system.
    pub fn of(file: &File) -> io::Result<Map> {
        match file {
            File::System(file) => Map::of_disk(file),
            File::Memory(file) => Ok(Map::Memory(bytes(&file.content).clone())),
        }
    }

    /// Errors: those of the system.
    pub fn of_disk(file: &fs::File) -> io::Result<Map> {
        // SAFETY: the map is only ever read. Bytes that another process changes meanwhile can give wrong numbers, and
        // a file that it shortens a bus error; like every reader of mapped files, we ask users not to do that.
        unsafe { Mmap::map(file) }.map(Map::System)
    }

    /// Releases the memory of mapped pages that have been read; they are read again when needed.
    pub fn forget(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Map::System(map) = self {
            // SAFETY: pages of a read-only file map hold nothing that is not in the file.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
            // This is only advice: a system that ignores it takes the memory back later.
            let _ = advised;
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Map::System(map) => map,
            Map::Memory(bytes) => bytes,
        }
    }
}
