use crate::memory::{self, Content, bytes};
use std::fs::{self, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// An open file.
#[derive(Debug)]
pub enum File {
    System(fs::File),
    Memory(InMemory),
}

#[derive(Debug)]
pub struct InMemory {
    pub(crate) content: Content,
    position: usize,
    append: bool,
}

impl File {
    pub(crate) fn in_memory(content: Content) -> File {
        File::Memory(InMemory { content, position: 0, append: false })
    }

    /// Creates an empty file, replacing an existing one.
    ///
    /// Errors: those of the system.
    pub fn create(path: &Path) -> io::Result<File> {
        if !memory::is_in(path) {
            return fs::File::create(path).map(File::System);
        }
        let content = memory::open_or_create(path)?;
        *bytes(&content) = Arc::default();
        Ok(File::in_memory(content))
    }

    /// Opens a file for appending, creating it if needed.
    ///
    /// Errors: those of the system.
    pub fn append(path: &Path) -> io::Result<File> {
        if !memory::is_in(path) {
            return fs::File::options().create(true).append(true).open(path).map(File::System);
        }
        Ok(File::Memory(InMemory { content: memory::open_or_create(path)?, position: 0, append: true }))
    }

    /// Opens or creates a file and locks it until it is dropped or the process ends. Files in memory belong to one process, so
    /// no other can hold the lock.
    ///
    /// Errors: another process has the lock; those of the system.
    pub fn try_lock(path: &Path) -> Result<File, TryLockError> {
        if memory::is_in(path) {
            return File::append(path).map_err(TryLockError::Error);
        }
        let file = fs::File::options().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(File::System(file))
    }

    /// Bytes of the file.
    ///
    /// Errors: those of the system.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            File::System(file) => Ok(file.metadata()?.len()),
            File::Memory(file) => Ok(bytes(&file.content).len() as u64),
        }
    }

    /// Truncates the file, or extends it with zeros, to this size.
    ///
    /// Errors: those of the system; more than there is memory for.
    pub fn set_size(&self, size: u64) -> io::Result<()> {
        match self {
            File::System(file) => file.set_len(size),
            File::Memory(file) => {
                self.reserve(size)?;
                Arc::make_mut(&mut bytes(&file.content)).resize(size as usize, 0);
                Ok(())
            }
        }
    }

    /// Makes room for a file that will have this size, so that one in memory is not moved as it grows.
    ///
    /// Errors: more than there is memory for.
    pub fn reserve(&self, size: u64) -> io::Result<()> {
        if let File::Memory(file) = self {
            let size = usize::try_from(size).map_err(io::Error::other)?;
            let mut content = bytes(&file.content);
            let content = Arc::make_mut(&mut content);
            content.try_reserve_exact(size.saturating_sub(content.len()))?;
        }
        Ok(())
    }

    /// Syncs the file to disk.
    ///
    /// Errors: those of the system.
    pub fn sync(&self) -> io::Result<()> {
        match self {
            File::System(file) => file.sync_all(),
            File::Memory(_) => Ok(()),
        }
    }
}

/// Extends a file with zeros to `end` bytes. The room for more is an eighth, as a file may take most of the memory.
fn grow(content: &mut Vec<u8>, end: usize) -> io::Result<()> {
    if content.capacity() < end {
        content.try_reserve_exact((end - content.len()).max(content.len() / 8))?;
    }
    content.resize(end, 0);
    Ok(())
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            File::System(file) => file.read(buffer),
            File::Memory(file) => {
                let content = bytes(&file.content);
                let count = content.get(file.position..).unwrap_or(&[]).read(buffer)?;
                file.position += count;
                Ok(count)
            }
        }
    }
}

impl Write for File {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            File::System(file) => file.write(buffer),
            File::Memory(file) => {
                let mut content = bytes(&file.content);
                let content = Arc::make_mut(&mut content);
                let begin = if file.append { content.len() } else { file.position };
                let end = begin + buffer.len();
                if content.len() < end {
                    grow(content, end)?;
                }
                content[begin..end].copy_from_slice(buffer);
                file.position = end;
                Ok(buffer.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            File::System(file) => file.flush(),
            File::Memory(_) => Ok(()),
        }
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let file = match self {
            File::System(file) => return file.seek(to),
            File::Memory(file) => file,
        };
        let (from, by) = match to {
            SeekFrom::Start(at) => (0, i64::try_from(at).map_err(io::Error::other)?),
            SeekFrom::End(by) => (bytes(&file.content).len(), by),
            SeekFrom::Current(by) => (file.position, by),
        };
        let at = (from as i64).checked_add(by).and_then(|at| usize::try_from(at).ok());
        file.position = at.ok_or_else(|| io::Error::other("a place outside of the file"))?;
        Ok(file.position as u64)
    }
}
