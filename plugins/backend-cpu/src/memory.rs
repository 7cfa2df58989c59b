//! Memory of tensors, and the pointers that kernels hold on it.

use half::{bf16, f16};
use sparta_graph::DType;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

const ALIGNMENT: usize = 64;

/// Zero-filled bytes, aligned for the widest vectors. Pages are touched on first use only.
pub struct Memory {
    base: NonNull<u8>,
    layout: Layout,
    aligned: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory has one owner; who writes while others read is decided by the kernels (see `Ptr`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `None`: the system does not have that much memory.
    pub fn zeroed(bytes: usize) -> Option<Memory> {
        // The standard library zeroes lazily only up to an alignment of 16; the rest is ours.
        let layout = Layout::from_size_align(bytes.checked_add(ALIGNMENT)?, 16).ok()?;
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let aligned = base.as_ptr().wrapping_add(base.as_ptr().align_offset(ALIGNMENT));
        Some(Memory { base, layout, aligned: NonNull::new(aligned)?, bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn ptr(&self) -> *mut u8 {
        self.aligned.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// A tensor's memory. `f32` tensors hold the backend's number type.
pub struct Buffer {
    pub memory: Memory,
    pub dtype: DType,
    pub len: usize,
    pub label: String,
}

/// A pointer that threads share. A plan keeps the memory alive, and checks at binding that operands which a kernel
/// writes overlap no other operand except where the op allows it; within a kernel each chunk of work writes its own
/// elements.
#[derive(Debug)]
pub struct Ptr<E>(*mut E);

impl<E> Clone for Ptr<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Ptr<E> {}

// SAFETY: see the type's documentation.
unsafe impl<E: Send> Send for Ptr<E> {}
// SAFETY: see the type's documentation.
unsafe impl<E: Send> Sync for Ptr<E> {}

impl<E> Ptr<E> {
    pub fn new(at: *mut E) -> Self {
        Ptr(at)
    }

    /// The address of element `i`.
    #[inline(always)]
    pub fn at(self, i: usize) -> *mut E {
        self.0.wrapping_add(i)
    }

    /// # Safety
    /// `start .. start + len` lies in the tensor, and nobody writes there concurrently.
    #[inline(always)]
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a [E] {
        // SAFETY: the caller vouches for it.
        unsafe { std::slice::from_raw_parts(self.at(start), len) }
    }

    /// # Safety
    /// `start .. start + len` lies in the tensor, and nothing else reads or writes there concurrently.
    #[inline(always)]
    pub unsafe fn slice_mut<'a>(self, start: usize, len: usize) -> &'a mut [E] {
        // SAFETY: the caller vouches for it.
        unsafe { std::slice::from_raw_parts_mut(self.at(start), len) }
    }
}

/// A tensor of any float type.
#[derive(Clone, Copy)]
pub enum Floats<T> {
    Full(Ptr<T>),
    Bf16(Ptr<bf16>),
    F16(Ptr<f16>),
}

impl<T> Floats<T> {
    /// Bytes of this many elements.
    pub fn bytes(self, elements: usize) -> usize {
        elements * if matches!(self, Floats::Full(_)) { size_of::<T>() } else { size_of::<u16>() }
    }
}

/// The planned scratch memory of a kernel: `shared` bytes, and `per_thread` bytes for each thread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Need {
    pub shared: usize,
    pub per_thread: usize,
}

impl Need {
    /// The least that suffices for both.
    pub fn max(self, other: Need) -> Need {
        Need { shared: self.shared.max(other.shared), per_thread: self.per_thread.max(other.per_thread) }
    }
}

/// Scratch memory that the calls of a plan use one after the other.
pub struct Scratch {
    memory: Memory,
    need: Need,
    shared: usize,
    per_thread: usize,
}

impl Scratch {
    /// `None`: out of memory.
    pub fn new(need: Need, threads: usize) -> Option<Scratch> {
        let round = |bytes: usize| bytes.checked_next_multiple_of(ALIGNMENT);
        let (shared, per_thread) = (round(need.shared)?, round(need.per_thread)?);
        let bytes = per_thread.checked_mul(threads)?.checked_add(shared)?;
        Some(Scratch { memory: Memory::zeroed(bytes)?, need, shared, per_thread })
    }

    /// The need that it covers.
    pub fn need(&self) -> Need {
        self.need
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The shared part, for the whole of one call.
    pub fn shared<E>(&self) -> Ptr<E> {
        Ptr(self.memory.ptr().cast())
    }

    /// The calling thread's own part, until its piece of work ends. Pieces of work do not start others.
    pub fn thread<E>(&self) -> Ptr<E> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        Ptr(self.memory.ptr().wrapping_add(self.shared + thread * self.per_thread).cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        for bytes in [0, 1, 100, 1 << 20] {
            let memory = Memory::zeroed(bytes).unwrap();
            assert!(memory.ptr().is_aligned_to_64());
            // SAFETY: within the allocation.
            assert!(unsafe { std::slice::from_raw_parts(memory.ptr(), bytes) }.iter().all(|&b| b == 0));
        }
        assert!(Memory::zeroed(usize::MAX - 1).is_none());
    }

    trait Aligned {
        fn is_aligned_to_64(&self) -> bool;
    }

    impl Aligned for *mut u8 {
        fn is_aligned_to_64(&self) -> bool {
            self.addr().is_multiple_of(64)
        }
    }
}
