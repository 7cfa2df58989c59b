//! What the backend needs of a device: memory, kernels from CUDA C++, products, times. A GPU has it through the driver,
//! NVRTC and cuBLASLt; tests have it on a CPU.

use sparta_graph::ops::Layout;
use sparta_graph::{DType, DeviceInfo};
use std::ffi::c_void;
use std::time::Duration;

/// One device with one queue: everything is done in the order of the calls. Calls that return nothing of the device may
/// return before it is done; what fails later is the error of a later call.
pub trait Machine: Send {
    /// As `devices` lists it. [`DeviceInfo::max_binding`] is given: kernels count words and elements in 32 bits, so that
    /// it is at most [`MAX_BINDING`].
    fn info(&self) -> DeviceInfo;

    /// Compute capability, major and minor: what of the kernels written for tensor cores it runs.
    fn capability(&self) -> (u32, u32);

    /// Memory filled with zeros, at an address that is a multiple of 256; 0 bytes are rounded up.
    fn alloc(&mut self, bytes: usize) -> Result<u64, Failure>;

    /// Gives back what `alloc` returned, when the work in the queue is done.
    fn free(&mut self, address: u64);

    /// Overwrites memory. `data` has been copied when it returns.
    ///
    /// # Safety
    /// `to` and as many bytes after it as `data` has lie in memory of `alloc`.
    unsafe fn write(&mut self, to: u64, data: &[u8]) -> Result<(), Failure>;

    /// Waits for all work in the queue and reads.
    ///
    /// # Safety
    /// As of `write`.
    unsafe fn read(&mut self, from: u64, out: &mut [u8]) -> Result<(), Failure>;

    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges lie in memory of `alloc`.
    unsafe fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), Failure>;

    /// Puts a read into the queue, that `finish_read` waits for.
    ///
    /// # Safety
    /// As of `write`.
    unsafe fn start_read(&mut self, from: u64, bytes: usize) -> Result<Reading, Failure>;

    /// Waits for a read alone, not for work after it, and copies it into `out`, which has as many bytes.
    fn finish_read(&mut self, reading: Reading, out: &mut [u8]) -> Result<(), Failure>;

    /// Makes kernels runnable, in the order given; together, so that they can be compiled in parallel. The backend asks
    /// once for each text.
    ///
    /// Errors: what the compiler says, with the name of the kernel.
    fn load(&mut self, kernels: &[KernelText]) -> Result<Vec<KernelId>, Failure>;

    /// Puts a launch into the queue.
    ///
    /// # Safety
    /// `arguments` are those of the kernel, and with them it stays within memory of `alloc`.
    unsafe fn launch(
        &mut self,
        kernel: KernelId,
        grid: [u32; 3],
        threads: Threads,
        arguments: &mut Arguments,
    ) -> Result<(), Failure>;

    /// Prepares products of this form by the vendor's library. `None` where there is no library, or it has no algorithm
    /// for the form: translated kernels serve then.
    fn product(&mut self, product: &Product) -> Result<Option<ProductId>, Failure>;

    /// Puts a product into the queue.
    ///
    /// # Safety
    /// The factors are those of the prepared form, in memory of `alloc`, and the result overlaps none of them, except
    /// that it may be the residual's place.
    unsafe fn multiply(&mut self, product: ProductId, factors: &Factors) -> Result<(), Failure>;

    /// Marks this place of the queue.
    fn mark(&mut self) -> Result<(), Failure>;

    /// Waits for all work and forgets the marks: what the device took from each mark to the next.
    fn times(&mut self) -> Result<Vec<Duration>, Failure>;
}

/// The most bytes of one binding.
pub const MAX_BINDING: u64 = (1 << 32) - 256;

/// What fails on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is not so much memory.
    OutOfMemory {
        bytes: u64,
    },
    /// The device does nothing any more, and every later call fails, too.
    Lost(String),
    Other(String),
}

impl Failure {
    /// What failed, for people.
    pub fn reason(&self) -> String {
        match self {
            Failure::OutOfMemory { bytes } => format!("no memory for {bytes} bytes"),
            Failure::Lost(reason) | Failure::Other(reason) => reason.clone(),
        }
    }
}

/// A kernel that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub usize);

/// A form of product that is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductId(pub usize);

/// A read in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reading(pub u64);

/// A kernel as CUDA C++.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelText {
    /// The whole text, without `#include`.
    pub text: String,
    /// The function to launch, `extern "C"`; it names the kernel in errors.
    pub entry: String,
    /// Bytes of dynamic shared memory of its launches.
    pub shared: u32,
}

/// The threads of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Threads {
    /// Of a block, in one dimension.
    pub block: u32,
    /// Bytes of dynamic shared memory, those of the kernel's text.
    pub shared: u32,
}

/// The arguments of a launch, in the form that `cuLaunchKernel` takes.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// All values, each at a multiple of 16 bytes.
    values: Vec<u128>,
    /// Where each begins.
    starts: Vec<usize>,
    pointers: Vec<*mut c_void>,
}

// SAFETY: the pointers are made from `values` whenever they are asked for and mean nothing before.
unsafe impl Send for Arguments {}

impl Arguments {
    /// Appends an address.
    pub fn address(&mut self, address: u64) {
        self.starts.push(self.values.len());
        self.values.push(u128::from(address));
    }

    /// Appends a structure of 32-bit words, or one such value.
    pub fn words(&mut self, words: &[u32]) {
        self.starts.push(self.values.len());
        self.values.extend(words.chunks(4).map(|four| {
            let mut bytes = [0; 16];
            for (to, word) in bytes.chunks_exact_mut(4).zip(four) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            u128::from_ne_bytes(bytes)
        }));
    }

    /// Pointers to the values, valid until `self` is changed or moved from.
    pub fn pointers(&mut self) -> &mut [*mut c_void] {
        let Arguments { values, starts, pointers } = self;
        pointers.clear();
        let base = values.as_mut_ptr();
        pointers.extend(starts.iter().map(|&start| base.wrapping_add(start).cast::<c_void>()));
        pointers
    }
}

/// A matrix, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// A form of product, `c [m, n] = scale * op(a) op(b) + bias + residual`, added up in f32 and rounded once to the type of
/// `c`. It gives the same bits each time. Factors of f32 are not rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// What of `a` and `b` is stored transposed: which are `[m, k]` or `[k, m]`, `[k, n]` or `[n, k]`.
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Of one type: f32, bf16 or f16.
    pub a: Matrix,
    pub b: Matrix,
    /// f32, or the type of the factors.
    pub c: Matrix,
    /// Whether there is a bias `[n]`, and its type.
    pub bias: Option<DType>,
    /// Whether there is a residual, of the form of `c`.
    pub residual: bool,
}

/// What a product is made of. Addresses are multiples of 16; those of absent factors are not read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub bias: u64,
    /// May be `c`.
    pub residual: u64,
    pub scale: f32,
}
