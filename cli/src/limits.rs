//! The limits that the system sets on this process: threads, memory, file sizes. Hitting one gives a message, not a
//! signal.

use std::num::NonZero;
use std::sync::mpsc::channel;

/// The variable that sets the size of the thread pools of this program and its plugins.
const THREADS: &str = "RAYON_NUM_THREADS";
/// Threads outside the pools: progress, interrupts, drivers.
const OTHERS: usize = 8;
/// More threads per processor than this are of no use.
const PER_PROCESSOR: usize = 8;

/// Adapts to the limits. Must be called before another thread exists.
///
/// Errors: too few threads, or too little memory, to work with.
pub fn prepare() -> Result<(), String> {
    // In a check, the parent process has to see how the library dies.
    if std::env::args_os().all(|argument| argument != "--child") {
        signals::prepare();
    }
    if sparta_plugin::host_memory() == Some(0) {
        return Err("the limit of the address space (`ulimit -v`) leaves no memory to work in; raise it".into());
    }
    let processors = own_share(std::thread::available_parallelism().map_or(1, NonZero::get));
    let asked = std::env::var(THREADS).ok().and_then(|text| text.parse().ok()).filter(|&n: &usize| n > 0);
    let most = processors.saturating_mul(PER_PROCESSOR);
    let wanted = asked.map_or(processors, |n| n.min(most));
    // A pool here and one in the CPU backend's library.
    let possible = threads(2 * wanted + OTHERS);
    let threads = wanted.min(possible.saturating_sub(OTHERS) / 2);
    if threads == 0 {
        return Err(format!(
            "the system lets this process have {possible} threads (`ulimit -u`, `ulimit -v`, a control group), and {} are \
             needed; raise the limit",
            OTHERS + 2
        ));
    }
    let shared = sparta_communicator_mpi::local_size() > 1;
    if Some(threads) != asked && (threads < wanted || asked.is_some() || shared) {
        let why = if threads < wanted { "the system allows no more" } else { "more would not help here" };
        if threads < wanted || asked.is_some() {
            crate::output::aside(format!("note: {threads} threads are used: {why}"));
        }
        // SAFETY: the process has no other thread: the trial threads have ended.
        unsafe { std::env::set_var(THREADS, threads.to_string()) };
    }
    Ok(())
}

/// How many processors this process may use if a launcher started several on this machine: launchers either bind each
/// process to its own processors, or let every process use all of them.
fn own_share(processors: usize) -> usize {
    let processes = sparta_communicator_mpi::local_size();
    let bound = online().filter(|&online| processors < online);
    match bound {
        Some(online) => processors.min(online.div_ceil(processes)),
        None => processors / processes,
    }
    .max(1)
}

/// The processors of the machine, if the system reports them.
fn online() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    text.trim().split(',').map(range).sum()
}

/// How many threads can exist at a time, up to `most`.
fn threads(most: usize) -> usize {
    let mut all = Vec::new();
    for _ in 0..most {
        let (end, ended) = channel::<()>();
        // Each thread lives until its channel closes.
        match std::thread::Builder::new().spawn(move || ended.recv().is_ok()) {
            Ok(thread) => all.push((end, thread)),
            Err(_) => break,
        }
    }
    let count = all.len();
    let (ends, threads): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    drop(ends);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    count
}

#[cfg(unix)]
mod signals {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        fn signal(number: c_int, handler: usize) -> usize;
        fn write(file: c_int, bytes: *const c_void, count: usize) -> isize;
        fn _exit(status: c_int) -> !;
    }

    const SIG_IGN: usize = 1;
    const SIGABRT: c_int = 6;
    /// The number is the same on Linux (except MIPS), macOS and the BSDs.
    const SIGXFSZ: c_int = 25;

    /// Turns exceeding the file size limit into a write error, and makes a process that runs out of memory, which Rust
    /// aborts, say so and exit with code 1.
    pub fn prepare() {
        // SAFETY: a constant of the system, and a handler that is async-signal-safe.
        unsafe {
            signal(SIGXFSZ, SIG_IGN);
            signal(SIGABRT, aborted as *const () as usize);
        }
    }

    extern "C" fn aborted(_: c_int) {
        let text = "error: the process had to stop: it is out of memory, or one of its libraries has failed; see above. \
                    `ulimit -v` and control groups limit memory; everything saved before is intact\n";
        // SAFETY: the bytes of a constant; both functions are async-signal-safe.
        unsafe {
            write(2, text.as_ptr().cast(), text.len());
            _exit(1)
        }
    }
}

#[cfg(not(unix))]
mod signals {
    pub fn prepare() {}
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_are_counted_and_end() {
        assert_eq!(super::threads(3), 3);
    }
}
