//! Watches running calls into plugins: a slow one is named, and so is one that ends the process.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use web_time::Instant;

/// The time after which a call is reported.
const SLOW: Duration = Duration::from_secs(3);

struct Running {
    id: u64,
    name: String,
    since: Instant,
    named: bool,
}

#[derive(Default)]
struct Calls {
    running: Vec<Running>,
    next: u64,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { running: Vec::new(), next: 0 });

/// Receives the reports.
static REPORT: OnceLock<fn(&str)> = OnceLock::new();

/// Whether the program itself is ending.
static ENDING: AtomicBool = AtomicBool::new(false);

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `report` receive calls into plugins that take more than three seconds, and calls that end the process, which
/// then exits with code 1. A program that calls this must call [`ending`] before it ends.
pub fn watch(report: fn(&str)) {
    // A second call has no effect.
    let _ = REPORT.set(report);
    // No thread can start while a library is being loaded, so this one must have started before. Without it, slow calls
    // go unreported.
    let (beginning, begun) = channel::<()>();
    let watcher = move || {
        drop(beginning);
        name_slow_ones()
    };
    if std::thread::Builder::new().spawn(watcher).is_ok() {
        // An error means that the sender was dropped: the thread has started.
        let _ = begun.recv();
    }
    // SAFETY: `at_exit` is a function without arguments that does not unwind.
    if unsafe { atexit(at_exit) } != 0 {
        report("warning: a plugin that ends the process will not be named");
    }
}

/// Announces that the program is ending by itself.
pub fn ending() {
    ENDING.store(true, Ordering::SeqCst);
}

/// A call that lasts until this is dropped, which restores the current directory: relative paths keep the meaning that
/// they had for the user.
pub struct Call {
    id: Option<u64>,
    directory: Option<PathBuf>,
}

impl Call {
    /// `name` is the plugin and its function: `lora (/path): describe`. A call that `may_last`, like a step of a large
    /// model, is reported only if the process ends in it.
    pub fn begin(name: impl FnOnce() -> String, may_last: bool) -> Call {
        let directory = std::env::current_dir().ok();
        if REPORT.get().is_none() {
            return Call { id: None, directory };
        }
        let mut calls = calls();
        calls.next += 1;
        let id = calls.next;
        calls.running.push(Running { id, name: name(), since: Instant::now(), named: may_last });
        Call { id: Some(id), directory }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            calls().running.retain(|call| call.id != id);
        }
        if let Some(directory) = &self.directory
            && std::env::current_dir().ok().as_ref() != Some(directory)
        {
            // A deleted directory cannot be restored.
            let _ = std::env::set_current_dir(directory);
        }
    }
}

fn name_slow_ones() {
    loop {
        std::thread::sleep(SLOW / 10);
        let mut slow = Vec::new();
        for call in calls().running.iter_mut().filter(|call| !call.named && call.since.elapsed() >= SLOW) {
            call.named = true;
            slow.push(format!("waiting for plugin {}", call.name));
        }
        if let Some(report) = REPORT.get() {
            slow.iter().for_each(|text| report(text));
        }
    }
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
    fn _exit(status: c_int) -> !;
}

extern "C" fn at_exit() {
    if ENDING.load(Ordering::SeqCst) {
        return;
    }
    let running: Vec<String> = calls().running.iter().map(|call| call.name.clone()).collect();
    if let Some(report) = REPORT.get() {
        match running.is_empty() {
            true => report("error: the process was ended by a library, not by sparta-cli"),
            false => report(&format!("error: the process was ended during a call of plugin {}", running.join(", "))),
        }
    }
    // SAFETY: it ends the process.
    unsafe { _exit(1) }
}
