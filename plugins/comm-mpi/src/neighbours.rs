//! The other processes on this machine: the system tells at once when one of them ends.

use std::time::Duration;

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_long, c_short, c_ulong};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::time::Duration;

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
        fn poll(files: *mut Poll, count: c_ulong, timeout: c_int) -> c_int;
    }

    /// `struct pollfd`.
    #[repr(C)]
    struct Poll {
        file: c_int,
        events: c_short,
        found: c_short,
    }

    const POLLIN: c_short = 1;
    /// The same number on all architectures.
    const PIDFD_OPEN: c_long = 434;

    /// A file that becomes readable when the process ends. `None` if the system has no such files.
    pub fn open(process: u32) -> Option<OwnedFd> {
        let flags: c_long = 0;
        // SAFETY: the system call takes two integers, and returns a new file or a negative number.
        let file = unsafe { syscall(PIDFD_OPEN, process as c_long, flags) };
        let file = c_int::try_from(file).ok().filter(|&file| file >= 0)?;
        // SAFETY: it is open, and nobody else owns it.
        Some(unsafe { OwnedFd::from_raw_fd(file) })
    }

    /// Those whose processes have ended, as soon as there are any; none once this time has passed.
    pub fn wait(files: &[&OwnedFd], time: Duration) -> Vec<usize> {
        let poll_of = |file: &&OwnedFd| Poll { file: file.as_raw_fd(), events: POLLIN, found: 0 };
        let mut all: Vec<Poll> = files.iter().map(poll_of).collect();
        let milliseconds = c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the count is that of the records, whose files are open.
        unsafe { poll(all.as_mut_ptr(), all.len() as c_ulong, milliseconds) };
        (0..all.len()).filter(|&i| all[i].found & POLLIN != 0).collect()
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::time::Duration;

    pub struct OwnedFd;

    pub fn open(_: u32) -> Option<OwnedFd> {
        None
    }

    pub fn wait(_: &[&OwnedFd], time: Duration) -> Vec<usize> {
        std::thread::sleep(time);
        Vec::new()
    }
}

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
#[cfg(not(target_os = "linux"))]
use system::OwnedFd;

/// The processes of other ranks that are watched.
pub struct Neighbours(Vec<(usize, OwnedFd)>);

impl Neighbours {
    /// Those with these ranks and process IDs.
    pub fn new(processes: impl Iterator<Item = (usize, u32)>) -> Neighbours {
        Neighbours(processes.filter_map(|(rank, process)| Some((rank, system::open(process)?))).collect())
    }

    /// The ranks of those that have ended, as soon as there are any; none once this time has passed.
    pub fn wait(&self, time: Duration) -> Vec<usize> {
        let files: Vec<&OwnedFd> = self.0.iter().map(|(_, file)| file).collect();
        system::wait(&files, time).into_iter().map(|place| self.0[place].0).collect()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut sleeping = Command::new("sleep").arg("60").spawn().unwrap();
        let neighbours = Neighbours::new([(3, std::process::id()), (5, sleeping.id())].into_iter());
        assert!(neighbours.wait(Duration::ZERO).is_empty());
        sleeping.kill().unwrap();
        assert_eq!(neighbours.wait(Duration::from_secs(60)), [5]);
        sleeping.wait().unwrap();
    }
}
