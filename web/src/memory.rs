//! The program's allocator: the platform's, but it remembers the last request that it had no memory for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use wasm_bindgen::prelude::wasm_bindgen;

/// Bytes of the last request that failed.
static REFUSED: AtomicUsize = AtomicUsize::new(0);

struct Remembering;

#[global_allocator]
static ALLOCATOR: Remembering = Remembering;

/// The bytes of the last request that has failed since the last job began; 0 if none has. Even a program that has ended
/// can be asked: a failed request ends it without a panic.
#[wasm_bindgen]
pub fn refused() -> f64 {
    REFUSED.load(Relaxed) as f64
}

pub fn forget_refused() {
    REFUSED.store(0, Relaxed);
}

fn remember(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        REFUSED.store(bytes, Relaxed);
    }
    pointer
}

// SAFETY: every call is passed on unchanged to the platform's allocator, whose answer is given back.
unsafe impl GlobalAlloc for Remembering {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        remember(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        remember(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's pointer, layout and size.
        remember(unsafe { System.realloc(pointer, layout, new_size) }, new_size)
    }
}
