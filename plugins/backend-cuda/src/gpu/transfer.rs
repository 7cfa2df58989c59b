//! Transfers through pinned memory, the only host memory that the device can access while the host continues.

use super::Session;
use super::driver::{EVENT_DISABLE_TIMING, Event};
use crate::machine::{Failure, Reading};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

/// Bytes of each half of [`Upload`], and of each piece of a blocking read.
const PIECE: usize = 16 << 20;

/// Host memory that the device can access; freed with the context.
struct Pinned {
    start: *mut u8,
    bytes: usize,
}

impl Pinned {
    fn new(session: &Session, bytes: usize) -> Result<Pinned, Failure> {
        let (driver, mut start) = (&session.driver, ptr::null_mut::<c_void>());
        // SAFETY: the pointer is to a live local.
        let made = unsafe { (driver.functions.cuMemHostAlloc)(&mut start, bytes, 0) };
        // Named here, since the driver's error does not say that host memory ran out.
        driver.check(&format!("cuMemHostAlloc of {bytes} bytes"), made)?;
        Ok(Pinned { start: start.cast(), bytes })
    }
}

/// Writes through two halves of pinned memory in turn: the host fills one while the device reads the other.
pub struct Upload {
    halves: [(Pinned, Event); 2],
    /// The half being filled, and how many of its bytes are in use.
    half: usize,
    taken: usize,
}

impl Upload {
    pub fn new(session: &Session) -> Result<Upload, Failure> {
        let half = || Ok((Pinned::new(session, PIECE)?, session.event(EVENT_DISABLE_TIMING)?));
        Ok(Upload { halves: [half()?, half()?], half: 0, taken: 0 })
    }

    /// # Safety
    /// `to` and as many bytes after it as `data` has lie in memory of the device.
    pub unsafe fn write(&mut self, session: &Session, to: u64, data: &[u8]) -> Result<(), Failure> {
        let driver = &session.driver;
        let mut to = to;
        for piece in data.chunks(PIECE) {
            if self.taken + piece.len() > PIECE {
                session.record(self.halves[self.half].1)?;
                self.half = 1 - self.half;
                self.taken = 0;
                // An event that was never recorded counts as done.
                session.wait_for(self.halves[self.half].1)?;
            }
            // SAFETY: the piece fits after the part that is taken, the only one that the device may be reading.
            let sent = unsafe {
                let place = self.halves[self.half].0.start.add(self.taken);
                ptr::copy_nonoverlapping(piece.as_ptr(), place, piece.len());
                (driver.functions.cuMemcpyHtoDAsync_v2)(to, place.cast(), piece.len(), session.stream)
            };
            driver.check("cuMemcpyHtoDAsync", sent)?;
            // Pieces begin at multiples of 16 bytes, which makes copies faster.
            self.taken = (self.taken + piece.len()).next_multiple_of(16).min(PIECE);
            to += piece.len() as u64;
        }
        Ok(())
    }
}

/// Queued reads, and memory for more.
pub struct Downloads {
    pending: HashMap<u64, Download>,
    next: u64,
    spare: Vec<Download>,
    /// Memory for blocking reads.
    piece: Pinned,
}

struct Download {
    memory: Pinned,
    bytes: usize,
    event: Event,
}

/// The least bytes of a [`Download`]'s memory, enough for most reads.
const DOWNLOAD: usize = 64 << 10;

impl Downloads {
    pub fn new(session: &Session) -> Result<Downloads, Failure> {
        Ok(Downloads { pending: HashMap::new(), next: 0, spare: Vec::new(), piece: Pinned::new(session, PIECE)? })
    }

    /// # Safety
    /// `from` and as many bytes after it as `out` has lie in memory of the device.
    pub unsafe fn read(&mut self, session: &Session, from: u64, out: &mut [u8]) -> Result<(), Failure> {
        let mut from = from;
        for piece in out.chunks_mut(self.piece.bytes) {
            // SAFETY: the caller vouches for the device's bytes; the piece is no longer than the pinned memory.
            unsafe { receive(session, from, &self.piece, piece.len()) }?;
            session.wait()?;
            // SAFETY: the device has written these bytes and is done.
            unsafe { ptr::copy_nonoverlapping(self.piece.start, piece.as_mut_ptr(), piece.len()) };
            from += piece.len() as u64;
        }
        Ok(())
    }

    /// # Safety
    /// `from` and `bytes` bytes after it lie in memory of the device.
    pub unsafe fn start(&mut self, session: &Session, from: u64, bytes: usize) -> Result<Reading, Failure> {
        let fits = self.spare.iter().position(|spare| spare.memory.bytes >= bytes);
        let mut download = match fits {
            Some(i) => self.spare.swap_remove(i),
            None => {
                let memory = Pinned::new(session, bytes.max(DOWNLOAD).next_power_of_two())?;
                Download { memory, bytes, event: session.event(EVENT_DISABLE_TIMING)? }
            }
        };
        download.bytes = bytes;
        if bytes > 0 {
            // SAFETY: the caller vouches for the device's bytes; the memory has as many, and no other read uses it.
            unsafe { receive(session, from, &download.memory, bytes) }?;
        }
        session.record(download.event)?;
        self.next += 1;
        self.pending.insert(self.next, download);
        Ok(Reading(self.next))
    }

    pub fn finish(&mut self, session: &Session, reading: Reading, out: &mut [u8]) -> Result<(), Failure> {
        let Some(download) = self.pending.remove(&reading.0) else {
            return Err(Failure::Other(format!("there is no requested read {}", reading.0)));
        };
        session.wait_for(download.event)?;
        let (memory, bytes) = (download.memory.start, download.bytes);
        self.spare.push(download);
        if bytes != out.len() {
            return Err(Failure::Other(format!("{bytes} bytes were requested, but {} are fetched", out.len())));
        }
        // SAFETY: the device has written these bytes and is done.
        unsafe { ptr::copy_nonoverlapping(memory, out.as_mut_ptr(), bytes) };
        Ok(())
    }
}

/// Queues a copy into pinned memory.
///
/// # Safety
/// Both have this many bytes, and nothing else uses those of the host until the copy is done.
unsafe fn receive(session: &Session, from: u64, to: &Pinned, bytes: usize) -> Result<(), Failure> {
    let driver = &session.driver;
    // SAFETY: the caller vouches for both.
    let received = unsafe { (driver.functions.cuMemcpyDtoHAsync_v2)(to.start.cast(), from, bytes, session.stream) };
    driver.check("cuMemcpyDtoHAsync", received)
}
