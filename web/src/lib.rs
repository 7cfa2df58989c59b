//! The trainer in a browser. The page's worker puts files into memory, requests a job, and calls `sparta_work`, which
//! does the job and reports what happens through [`host::emit`]. See `page/sparta.js` for the interface that pages use.

mod events;
mod host;
mod jobs;
mod memory;
mod plugins;

use serde_json::{Value, json};
use sparta_core::files::{self, Kind};
use sparta_graph::memory_size;
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use wasm_bindgen::prelude::wasm_bindgen;

thread_local! {
    /// The job that was requested.
    static ASKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A bug in the program ends it; the page then says why.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|panic| host::tell(&json!({ "event": "panic", "value": panic.to_string() }))));
}

fn path(name: &str) -> PathBuf {
    Path::new(files::MEMORY).join(name)
}

/// Makes an empty file with room for this many bytes, in place of what was there.
///
/// Errors: more bytes than there is memory for.
#[wasm_bindgen]
pub fn create(name: &str, room: f64) -> Result<(), String> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(room as usize).map_err(|_| {
        let room = memory_size(room as u64);
        format!("{name}: this tab has no memory for its {room}: it has 4 GiB for all files, and 2 GiB for one")
    })?;
    files::put(&path(name), bytes).map_err(|e| format!("{name}: {e}"))
}

/// Writes the next part of a file that [`create`] has made.
///
/// Errors: there is no such file.
#[wasm_bindgen]
pub fn append(name: &str, part: &[u8]) -> Result<(), String> {
    let write = || files::File::append(&path(name))?.write_all(part);
    write().map_err(|e: std::io::Error| format!("{name}: {e}"))
}

/// The bytes of a file.
///
/// Errors: there is no such file.
#[wasm_bindgen]
pub fn read(name: &str) -> Result<Vec<u8>, String> {
    files::read(&path(name), u64::from(u32::MAX)).map_err(|e| format!("{name}: {e}"))
}

/// The names of all files below a directory.
#[wasm_bindgen]
pub fn list(name: &str) -> Vec<String> {
    let mut names = Vec::new();
    for inside in files::list(&path(name)).unwrap_or_default() {
        let name = inside.strip_prefix(files::MEMORY).unwrap_or(&inside).to_string_lossy().into_owned();
        match files::kind(&inside) {
            Ok(Kind::Directory) => names.append(&mut list(&name)),
            _ => names.push(name),
        }
    }
    names
}

/// Removes a file, or a directory and what is in it.
#[wasm_bindgen]
pub fn remove(name: &str) -> Result<(), String> {
    files::remove(&path(name)).map_err(|e| format!("{name}: {e}"))
}

/// Asks for a job, which the next call of `sparta_work` does.
#[wasm_bindgen]
pub fn ask(request: String) {
    ASKED.set(Some(request));
}

/// Does the job that was asked for. It waits for the device, so it is called through `WebAssembly.promising`.
#[unsafe(no_mangle)]
pub extern "C" fn sparta_work() {
    let Some(request) = ASKED.take() else { return };
    memory::forget_refused();
    let outcome = serde_json::from_str(&request).map_err(|e| format!("the request cannot be read: {e}"));
    let outcome = outcome.and_then(|request| jobs::perform(request).map_err(|e| e.to_string()));
    host::tell(&match outcome {
        Ok(result) => json!({ "event": "result", "value": result }),
        Err(error) => json!({ "event": "error", "value": Value::String(error) }),
    });
}
