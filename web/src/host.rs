//! What the page's worker gives to the program.

use serde::Serialize;
use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen(raw_module = "./host.js")]
extern "C" {
    /// Takes an event, as JSON.
    fn emit(event: &str);
    /// Whether the user wants the job to end.
    pub fn stopped() -> bool;
    /// GiB of the machine's memory, rounded by the browser; 0 if it does not say.
    fn memory() -> f64;
}

/// Gives an event to the page.
pub fn tell(event: &impl Serialize) {
    // Events are made of strings, numbers and lists of them, which JSON has.
    if let Ok(text) = serde_json::to_string(event) {
        emit(&text);
    }
}

/// Bytes of the machine's memory, about, if the browser says.
pub fn machine_memory() -> Option<u64> {
    Some((memory() * f64::from(1 << 30)) as u64).filter(|&bytes| bytes > 0)
}
