//! Whether the other processes are alive: each sends a byte to the next one twice a second, and notices when none come
//! from the one before.

use crate::api::{Functions, Names};
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(500);
/// The most that counts as silence between two checks: this process itself may have been suspended.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

const ALIVE: u8 = 1;
/// The last beat: the process is about to end.
const PARTING: u8 = 2;
const TAG: c_int = 7;

/// The result of a check.
pub enum Seen {
    Alive,
    /// Nothing was heard for [`Beats::PATIENCE`].
    Silent,
    /// A call returned this code.
    Failed(c_int),
}

/// The heartbeats between this process and its neighbours in the ring of ranks, on their own communicator.
pub struct Beats<H> {
    communicator: H,
    rank: usize,
    size: usize,
    /// The bytes received and sent, which stay in place until the request is done.
    incoming: Box<u8>,
    outgoing: Box<u8>,
    receiving: Option<H>,
    sending: Option<H>,
    sent: Option<Instant>,
    looked: Option<Instant>,
    silence: Duration,
    /// Whether the last beat was sent, and whether that of the process before has come.
    parting: bool,
    parted: bool,
}

impl<H: Copy> Beats<H> {
    /// The silence after which a process counts as lost.
    pub const PATIENCE: Duration = Duration::from_secs(7);

    pub fn new(communicator: H, rank: usize, size: usize) -> Self {
        Beats {
            communicator,
            rank,
            size,
            incoming: Box::new(0),
            outgoing: Box::new(ALIVE),
            receiving: None,
            sending: None,
            sent: None,
            looked: None,
            silence: Duration::ZERO,
            parting: false,
            parted: false,
        }
    }

    /// The process whose beats come here.
    pub fn before(&self) -> usize {
        (self.rank + self.size - 1) % self.size
    }

    /// Sends a beat if one is due, and takes those that have come.
    pub fn look(&mut self, f: &Functions<H>, names: &Names<H>, now: Instant) -> Seen {
        self.silence += self.looked.map_or(Duration::ZERO, |looked| (now - looked).min(LONGEST_LOOK));
        self.looked = Some(now);
        if let Err(code) = self.receive(f, names).and_then(|()| self.send(f, names, now)) {
            return Seen::Failed(code);
        }
        match self.parted || self.silence < Self::PATIENCE {
            true => Seen::Alive,
            false => Seen::Silent,
        }
    }

    /// Sends the last beat and waits for that of the process before: true once nothing is in transit any more.
    pub fn part(&mut self, f: &Functions<H>, names: &Names<H>) -> bool {
        if self.receive(f, names).is_err() || self.finish_sending(f, names).is_err() {
            return true;
        }
        if !self.parting && self.sending.is_none() {
            *self.outgoing = PARTING;
            self.parting = true;
            if self.begin_sending(f, names).is_err() {
                return true;
            }
        }
        self.parting && self.parted && self.sending.is_none()
    }

    fn receive(&mut self, f: &Functions<H>, names: &Names<H>) -> Result<(), c_int> {
        while !self.parted {
            let Some(mut request) = self.receiving else {
                let (mut request, from) = (names.world, self.before() as c_int);
                let incoming: *mut u8 = &mut *self.incoming;
                // SAFETY: the byte is on the heap and lives as long as the request, which ends before MPI does.
                let code =
                    unsafe { (f.irecv)(incoming.cast(), 1, names.byte, from, TAG, self.communicator, &mut request) };
                done(code)?;
                self.receiving = Some(request);
                continue;
            };
            if !test(f, names, &mut request)? {
                return Ok(());
            }
            (self.receiving, self.silence) = (None, Duration::ZERO);
            self.parted = *self.incoming == PARTING;
        }
        Ok(())
    }

    fn send(&mut self, f: &Functions<H>, names: &Names<H>, now: Instant) -> Result<(), c_int> {
        self.finish_sending(f, names)?;
        if self.sending.is_none() && self.sent.is_none_or(|sent| now - sent >= INTERVAL) {
            self.sent = Some(now);
            self.begin_sending(f, names)?;
        }
        Ok(())
    }

    fn begin_sending(&mut self, f: &Functions<H>, names: &Names<H>) -> Result<(), c_int> {
        let (mut request, to) = (names.world, ((self.rank + 1) % self.size) as c_int);
        let outgoing: *const u8 = &*self.outgoing;
        // SAFETY: the byte is on the heap, lives as long as the request and is not written before it is done.
        done(unsafe { (f.isend)(outgoing.cast(), 1, names.byte, to, TAG, self.communicator, &mut request) })?;
        self.sending = Some(request);
        Ok(())
    }

    fn finish_sending(&mut self, f: &Functions<H>, names: &Names<H>) -> Result<(), c_int> {
        if let Some(mut request) = self.sending
            && test(f, names, &mut request)?
        {
            self.sending = None;
        }
        Ok(())
    }
}

fn done(code: c_int) -> Result<(), c_int> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// Whether a request is done.
fn test<H>(f: &Functions<H>, names: &Names<H>, request: &mut H) -> Result<bool, c_int> {
    let mut flag = 0;
    // SAFETY: a request that was started and not found done; the status is the ABI's constant for none.
    done(unsafe { (f.test)(request, &mut flag, names.no_status as *mut c_void) })?;
    Ok(flag != 0)
}
