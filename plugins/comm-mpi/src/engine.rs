//! Exchanges through an MPI library.
//!
//! No call blocks: a collective is started and then polled. While the process waits, it checks that the others are
//! alive, and sleeps instead of spinning. Two threads use the library, one at a time.

use crate::api::{Functions, Names};
use crate::neighbours::Neighbours;
use crate::watch::{Beats, Seen};
use sparta_plugin::Error;
use sparta_plugin::communicator::{Communicator, Launch, Place};
use std::ffi::{c_char, c_int, c_void};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most bytes that a process passes to one collective: counts have 31 bits, and libraries multiply them by the
/// number of processes.
const PIECE: usize = 64 << 20;

/// Bytes of the name of a process: its number and its machine.
const PROCESS: usize = 64;

/// How long a thread polls without sleeping before the others are known to be ready, and after.
const BRIEFLY: Duration = Duration::from_micros(200);
const EAGERLY: Duration = Duration::from_millis(100);
/// An exchange of at least this many bytes follows one of headers, so the others are ready.
const DATA: usize = 4096;
const PAUSE: Duration = Duration::from_micros(50);

/// The end of a message about lost processes.
const GO_ON: &str = "All processes end; --resume continues from the newest checkpoint";

/// The interval at which the second thread checks.
const LOOK: Duration = Duration::from_millis(250);

/// What both threads use.
pub struct Shared<H> {
    functions: Functions<H>,
    names: Names<H>,
    beats: Mutex<Beats<H>>,
    processes: Vec<Process>,
    /// Set when this process has nothing more to exchange: others may end from then on.
    parting: AtomicBool,
    /// Set when the second thread has nothing more to do.
    ended: AtomicBool,
}

/// A process of the launch.
struct Process {
    id: u32,
    host: String,
}

struct Mpi<H: Copy + Send + Sync + 'static> {
    shared: Arc<Shared<H>>,
    place: Place,
}

/// Initialises MPI and connects to the other processes.
///
/// Errors: a library that fails, or sees a different number of processes than the launcher started.
///
/// # Safety
/// `functions` and `names` belong to one library, which stays open.
pub unsafe fn join<H: Copy + Send + Sync + 'static>(
    launch: &Launch,
    functions: Functions<H>,
    names: Names<H>,
    path: &Path,
) -> Result<Box<dyn Communicator>, Error> {
    let f = &functions;
    let failed = |what: &str, code: c_int| Error(format!("{}: {what} failed with code {code}", path.display()));
    let check = |what: &str, code: c_int| if code == 0 { Ok(()) } else { Err(failed(what, code)) };
    let (mut provided, mut rank, mut size, mut beats) = (0, 0, 0, names.world);
    // SAFETY: called as the MPI standard says, with pointers to live locals; MPI was not initialised before.
    unsafe {
        let none = std::ptr::null_mut();
        check("MPI_Init_thread", (f.init_thread)(none, none.cast(), names.serialized, &mut provided))?;
        check("MPI_Comm_set_errhandler", (f.set_errhandler)(names.world, names.errors_return))?;
        check("MPI_Comm_rank", (f.comm_rank)(names.world, &mut rank))?;
        check("MPI_Comm_size", (f.comm_size)(names.world, &mut size))?;
    }
    let (rank, size) = (rank as usize, size as usize);
    if size != launch.size {
        return Err(Error(format!(
            "{} has started {} processes, but {} sees {size}: it is not this launcher's library, or the launcher does \
             not support it (srun --mpi=list shows what is available); name the right one with SPARTA_MPI_LIBRARY",
            launch.launcher,
            launch.size,
            path.display()
        )));
    }
    if provided < names.serialized {
        return Err(failed("MPI_THREAD_SERIALIZED", provided));
    }
    // SAFETY: as above.
    unsafe {
        check("MPI_Comm_dup", (f.comm_dup)(names.world, &mut beats))?;
        check("MPI_Comm_set_errhandler", (f.set_errhandler)(beats, names.errors_return))?;
    }
    let library = version(f, path);
    let beats = Mutex::new(Beats::new(beats, rank, size));
    let shared = Shared {
        functions,
        names,
        beats,
        processes: Vec::new(),
        parting: AtomicBool::new(false),
        ended: AtomicBool::new(false),
    };
    let place = Place { rank, size, local_rank: 0, host: host(), library };
    let mut mpi = Mpi { shared: Arc::new(shared), place };
    mpi.meet()?;
    mpi.watch();
    Ok(Box::new(mpi))
}

/// The library's name and version, on one line.
fn version<H>(functions: &Functions<H>, path: &Path) -> String {
    let (mut text, mut len) = (vec![0u8; 8192], 0);
    // SAFETY: the text has room for MPI_MAX_LIBRARY_VERSION_STRING bytes.
    unsafe { (functions.library_version)(text.as_mut_ptr().cast::<c_char>(), &mut len) };
    text.truncate(usize::try_from(len).unwrap_or(0));
    let text = String::from_utf8_lossy(&text);
    let first = text.trim_matches('\0').lines().next().unwrap_or_default().split(',').next().unwrap_or_default();
    let first: Vec<&str> = first.split_whitespace().collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{} ({name})", first.join(" "))
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match name.trim() {
        "" => "an unnamed machine".into(),
        name => name.chars().take(PROCESS / 4 - 1).collect(),
    }
}

impl<H: Copy + Send + Sync + 'static> Mpi<H> {
    /// Learns the names of the machines, and with them the local rank.
    fn meet(&mut self) -> Result<(), Error> {
        let Place { rank, size, .. } = self.place;
        let mut own = std::process::id().to_le_bytes().to_vec();
        own.extend(self.place.host.as_bytes());
        own.resize(PROCESS, 0);
        let mut all = vec![0; PROCESS * size];
        self.all_gather(&own, &mut all)?;
        let process = |bytes: &[u8]| {
            let (id, host) = bytes.split_at(4);
            let id = id.iter().rev().fold(0, |id, &byte| id << 8 | u32::from(byte));
            Process { id, host: String::from_utf8_lossy(host).trim_matches('\0').to_owned() }
        };
        let processes: Vec<Process> = all.chunks(PROCESS).map(process).collect();
        let here = |process: &&Process| process.host == processes[rank].host;
        self.place.local_rank = processes[..rank].iter().filter(here).count();
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.processes = processes;
        }
        Ok(())
    }

    /// Starts the thread that, while this process computes, shows the others that it is alive and checks that they are.
    fn watch(&self) {
        let (shared, rank) = (self.shared.clone(), self.place.rank);
        let others = shared.processes.iter().enumerate().filter(|(other, process)| {
            let Process { host, .. } = &shared.processes[rank];
            *other != rank && process.host == *host
        });
        let neighbours = Neighbours::new(others.map(|(other, process)| (other, process.id)));
        let look = move || {
            while !shared.ended.load(Ordering::Acquire) {
                let ended = neighbours.wait(LOOK);
                if !ended.is_empty() {
                    match shared.parting.load(Ordering::Acquire) {
                        true => std::thread::sleep(LOOK),
                        false => shared.lost_one_of(&ended),
                    }
                }
                // If the other thread holds the lock, it does the check itself.
                if let Ok(mut beats) = shared.beats.try_lock()
                    && !shared.ended.load(Ordering::Acquire)
                {
                    shared.look(&mut beats);
                }
            }
        };
        // Without this thread, only the launcher notices that a process is gone.
        let _ = std::thread::Builder::new().name("mpi".into()).spawn(look);
    }

    /// Starts a collective and waits until it is done; `bytes` is how much it transfers.
    fn collective(&self, bytes: usize, begin: impl FnOnce(&Functions<H>, &Names<H>, *mut H) -> c_int) {
        let shared = &*self.shared;
        let mut request = shared.names.world;
        {
            let mut beats = shared.beats();
            let code = begin(&shared.functions, &shared.names, &mut request);
            shared.check(&mut beats, code);
        }
        let (since, eager) = (Instant::now(), if bytes < DATA { BRIEFLY } else { EAGERLY });
        loop {
            {
                let mut beats = shared.beats();
                let (code, done) = shared.test(&mut request);
                shared.check(&mut beats, code);
                if done {
                    return;
                }
                shared.look(&mut beats);
            }
            match since.elapsed() < eager {
                true => std::thread::yield_now(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }

    fn gather_piece(&self, own: &[u8], all: &mut [u8]) {
        let count = own.len() as c_int;
        self.collective(all.len(), |f, names, request| {
            let (own, all, byte, world) = (own.as_ptr().cast(), all.as_mut_ptr().cast(), names.byte, names.world);
            // SAFETY: both buffers are borrowed until the request is done, `all` with room for what each process has.
            unsafe { (f.iallgather)(own, count, byte, all, count, byte, world, request) }
        });
    }
}

fn silence<H: Copy>() -> String {
    format!("nothing was heard from it for {} s", Beats::<H>::PATIENCE.as_secs())
}

impl<H: Copy> Shared<H> {
    fn beats(&self) -> MutexGuard<'_, Beats<H>> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request is done.
    fn test(&self, request: &mut H) -> (c_int, bool) {
        let mut done = 0;
        // SAFETY: a request that was started and not found done; the status is the ABI's constant for none.
        let code = unsafe { (self.functions.test)(request, &mut done, self.names.no_status as *mut c_void) };
        (code, done != 0)
    }

    /// Shows that this process is alive, and checks that the one before it is.
    fn look(&self, beats: &mut Beats<H>) {
        match beats.look(&self.functions, &self.names, Instant::now()) {
            Seen::Alive => {}
            Seen::Silent => self.lost(beats.before(), &silence::<H>()),
            Seen::Failed(code) => self.check(beats, code),
        }
    }

    /// Ends all processes if a call has failed: most often another process is gone, which the heartbeats show.
    fn check(&self, beats: &mut Beats<H>, code: c_int) {
        if code == 0 {
            return;
        }
        let begin = Instant::now();
        while begin.elapsed() < Beats::<H>::PATIENCE + Duration::from_secs(1) {
            if matches!(beats.look(&self.functions, &self.names, Instant::now()), Seen::Silent) {
                self.lost(beats.before(), &silence::<H>());
            }
            std::thread::sleep(LOOK / 5);
        }
        self.abort(&format!("an exchange failed: {}", self.text(code)));
    }

    fn text(&self, code: c_int) -> String {
        let (mut text, mut len) = (vec![0u8; 1024], 0);
        // SAFETY: the text has room for MPI_MAX_ERROR_STRING bytes.
        unsafe { (self.functions.error_string)(code, text.as_mut_ptr().cast::<c_char>(), &mut len) };
        text.truncate(usize::try_from(len).unwrap_or(0));
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// Ends all processes because one is gone.
    fn lost(&self, rank: usize, why: &str) -> ! {
        self.abort(&format!("{} was lost: {why}. {GO_ON}", self.name(rank)))
    }

    /// Ends all processes because some have ended; if there are several, the launcher may have ended all but one.
    fn lost_one_of(&self, ranks: &[usize]) -> ! {
        if let [rank] = ranks {
            self.lost(*rank, "it has ended");
        }
        let names = ranks.iter().map(|&rank| self.name(rank)).collect::<Vec<_>>().join(", ");
        self.abort(&format!("one of these processes was lost, and the others ended after it: {names}. {GO_ON}"))
    }

    fn name(&self, rank: usize) -> String {
        match self.processes.get(rank) {
            Some(Process { id, host }) => format!("process {rank} on {host} ({id})"),
            None => format!("process {rank}"),
        }
    }

    /// Ends all processes.
    fn abort(&self, reason: &str) -> ! {
        // In one write, as the launcher that forwards it may end between two.
        let _ = std::io::stderr().write_all(format!("error: {reason}\n").as_bytes());
        // A launcher that ends all processes itself reports more.
        std::thread::sleep(LOOK);
        // SAFETY: called as the MPI standard says.
        unsafe { (self.functions.abort)(self.names.world, 1) };
        std::process::exit(1)
    }
}

impl<H: Copy + Send + Sync + 'static> Communicator for Mpi<H> {
    fn place(&self) -> Place {
        self.place.clone()
    }

    fn barrier(&mut self) -> Result<(), Error> {
        // SAFETY: called as the MPI standard says.
        self.collective(0, |f, names, request| unsafe { (f.ibarrier)(names.world, request) });
        Ok(())
    }

    fn broadcast(&mut self, root: usize, data: &mut [u8]) -> Result<(), Error> {
        for piece in data.chunks_mut(PIECE) {
            let count = piece.len() as c_int;
            self.collective(piece.len(), |f, names, request| {
                let data = piece.as_mut_ptr().cast();
                // SAFETY: the buffer is borrowed until the request is done.
                unsafe { (f.ibcast)(data, count, names.byte, root as c_int, names.world, request) }
            });
        }
        Ok(())
    }

    fn all_gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), Error> {
        if own.len() <= PIECE {
            self.gather_piece(own, all);
            return Ok(());
        }
        let mut gathered = vec![0; PIECE * self.place.size];
        for (i, piece) in own.chunks(PIECE).enumerate() {
            let gathered = &mut gathered[..piece.len() * self.place.size];
            self.gather_piece(piece, gathered);
            for (all, piece) in all.chunks_mut(own.len()).zip(gathered.chunks(piece.len())) {
                all[i * PIECE..][..piece.len()].copy_from_slice(piece);
            }
        }
        Ok(())
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Error> {
        for piece in values.chunks_mut(PIECE / 4) {
            let (own, count) = (piece.to_vec(), piece.len() as c_int);
            self.collective(4 * piece.len(), |f, names, request| {
                let (from, to) = (own.as_ptr().cast(), piece.as_mut_ptr().cast());
                // SAFETY: both buffers live until the request is done, each of `count` floats.
                unsafe { (f.iallreduce)(from, to, count, names.float, names.sum, names.world, request) }
            });
        }
        Ok(())
    }

    fn abort(&mut self, reason: &str) {
        self.shared.abort(reason)
    }
}

impl<H: Copy + Send + Sync + 'static> Drop for Mpi<H> {
    fn drop(&mut self) {
        self.shared.parting.store(true, Ordering::Release);
        // Once all have arrived, nobody checks the others any more.
        let _ = self.barrier();
        self.shared.ended.store(true, Ordering::Release);
        let shared = &*self.shared;
        let mut beats = shared.beats();
        while !beats.part(&shared.functions, &shared.names) {
            std::thread::sleep(PAUSE);
        }
        // SAFETY: all requests are done, and the other thread makes no more calls.
        unsafe { (shared.functions.finalize)() };
    }
}
