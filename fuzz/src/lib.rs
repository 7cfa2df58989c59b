//! What all targets share: how a panic is reported.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// The latest panic, with its place.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Replaces libFuzzer's own hook, which ends the process at every panic: some readers catch the panics of crates that
/// they are built on, and turn them into errors.
pub fn init() {
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

/// Feeds a reader; a panic that leaves it is a finding.
pub fn feed(reader: &str, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| sparta_readers::read(reader, bytes))).is_err() {
        eprintln!("{}", PANIC.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort();
    }
}
