//! Reads the state of the process and the machine from `/proc`; `None` where there is none.

use std::fs;
use std::time::Instant;

/// Bytes of a line of `/proc/self/status`.
fn status(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes of the process that are in memory now.
pub fn resident() -> Option<u64> {
    status("VmRSS")
}

/// The most bytes of the process that were in memory since the last [`reset_peak`].
pub fn peak_resident() -> Option<u64> {
    status("VmHWM")
}

/// Resets the peak, if the system can.
pub fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// CPU use over a window of time.
pub struct CpuWindow {
    start: Instant,
    busy: Option<f64>,
    own: Option<f64>,
}

/// Ticks per second in `/proc`, the same on every Linux platform that Rust supports.
const TICKS: f64 = 100.0;

impl CpuWindow {
    pub fn open() -> CpuWindow {
        CpuWindow { start: Instant::now(), busy: busy(), own: own() }
    }

    /// CPU seconds that this process has used since.
    pub fn own(&self) -> Option<f64> {
        Some(own()? - self.own?)
    }

    /// The share of the machine's CPU time that other processes have used since.
    pub fn others(&self) -> Option<f64> {
        let seconds = self.start.elapsed().as_secs_f64();
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
        let others = busy()? - self.busy? - self.own()?;
        Some((others / (seconds * cpus)).max(0.0))
    }
}

/// CPU seconds of all processes; time stolen by a hypervisor counts.
fn busy() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|x| x.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else { return None };
    Some((user + nice + system + irq + softirq + steal) / TICKS)
}

/// CPU seconds of this process.
fn own() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command's name in brackets, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}
