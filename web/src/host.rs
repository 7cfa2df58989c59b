//! What the page's worker gives to the program.

use serde::Serialize;
use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen(raw_module = "./host.js")]
extern "C" {
    /// Takes an event, as JSON.
    fn emit(event: &str);
    /// Whether the user wants the job to end.
    pub fn stopped() -> bool;
}

/// Gives an event to the page.
pub fn tell(event: &impl Serialize) {
    // Events are made of strings, numbers and lists of them, which JSON has.
    if let Ok(text) = serde_json::to_string(event) {
        emit(&text);
    }
}
