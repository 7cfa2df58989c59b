//! This executable's allocator: the system's, limited in a process that reads untrusted files.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// Bytes that may be in use. Nothing is counted until a limit is set.
static LIMIT: AtomicIsize = AtomicIsize::new(isize::MAX);
/// Bytes allocated since then, minus those freed.
static IN_USE: AtomicIsize = AtomicIsize::new(0);

/// Limits the memory that the process allocates from now on. A request beyond the limit ends the process.
pub fn limit_memory(bytes: isize) {
    LIMIT.store(bytes, Relaxed);
}

pub struct Limited;

/// Counts a change; false if it is more than the limit allows.
fn count(bytes: isize) -> bool {
    let limit = LIMIT.load(Relaxed);
    if limit == isize::MAX {
        return true;
    }
    let allowed = IN_USE.fetch_add(bytes, Relaxed).saturating_add(bytes) <= limit || bytes < 0;
    if !allowed {
        IN_USE.fetch_sub(bytes, Relaxed);
    }
    allowed
}

/// A layout's size is at most `isize::MAX`.
fn size(layout: Layout) -> isize {
    layout.size() as isize
}

// SAFETY: every call is passed on unchanged to the system's allocator, or answered with null, which means out of
// memory.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        if count(size(layout)) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        if count(size(layout)) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-size(layout));
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !count((new_size as isize).saturating_sub(size(layout))) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's pointer, layout and size.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
