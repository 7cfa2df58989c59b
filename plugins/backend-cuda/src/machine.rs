//! What the backend needs from a device: memory, kernels from CUDA C++, products, times. A GPU provides it through the
//! driver, NVRTC and cuBLASLt; tests provide it on a CPU.

use sparta_graph::ops::Layout;
use sparta_graph::{DType, DeviceInfo};
use std::ffi::c_void;
use std::time::Duration;

/// One device with one queue: everything happens in the order of the calls. Calls that return no data from the device
/// may return before the work is done; later failures are errors of a later call.
pub trait Machine: Send {
    /// The device as listed by `devices`. [`DeviceInfo::max_binding`] is set: kernels count words and elements in 32
    /// bits, so it is at most [`MAX_BINDING`].
    fn info(&self) -> DeviceInfo;

    /// The compute capability, major and minor, which decides the tensor core kernels it can run.
    fn capability(&self) -> (u32, u32);

    /// Memory filled with zeros, at an address that is a multiple of 256; 0 bytes are rounded up.
    fn alloc(&mut self, bytes: usize) -> Result<u64, Failure>;

    /// Frees what `alloc` returned once queued work is done.
    fn free(&mut self, address: u64);

    /// Overwrites memory. `data` has been copied when it returns.
    ///
    /// # Safety
    /// `to` and as many bytes after it as `data` has lie in memory from `alloc`.
    unsafe fn write(&mut self, to: u64, data: &[u8]) -> Result<(), Failure>;

    /// Waits for all work in the queue and reads.
    ///
    /// # Safety
    /// As for `write`.
    unsafe fn read(&mut self, from: u64, out: &mut [u8]) -> Result<(), Failure>;

    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges lie in memory from `alloc`.
    unsafe fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), Failure>;

    /// Queues a read, which `finish_read` waits for.
    ///
    /// # Safety
    /// As for `write`.
    unsafe fn start_read(&mut self, from: u64, bytes: usize) -> Result<Reading, Failure>;

    /// Waits for a read, but not for work after it, and copies it into `out`, which has as many bytes.
    fn finish_read(&mut self, reading: Reading, out: &mut [u8]) -> Result<(), Failure>;

    /// Loads kernels, in the order given and together, so that they can be compiled in parallel. The backend asks
    /// once for each text.
    ///
    /// Errors: the compiler's message with the kernel's name.
    fn load(&mut self, kernels: &[KernelText]) -> Result<Vec<KernelId>, Failure>;

    /// Queues a launch.
    ///
    /// # Safety
    /// `arguments` are those of the kernel, and with them it stays within memory from `alloc`.
    unsafe fn launch(
        &mut self,
        kernel: KernelId,
        grid: [u32; 3],
        threads: Threads,
        arguments: &mut Arguments,
    ) -> Result<(), Failure>;

    /// Prepares products of this form by the vendor's library. `None` if there is no library, or it has no algorithm
    /// for the form; translated kernels are used then.
    fn product(&mut self, product: &Product) -> Result<Option<ProductId>, Failure>;

    /// Queues a product.
    ///
    /// # Safety
    /// The factors are those of the prepared form, in memory from `alloc`, and the result overlaps none of them, except
    /// that it may be the residual's place.
    unsafe fn multiply(&mut self, product: ProductId, factors: &Factors) -> Result<(), Failure>;

    /// Records the work that `work` queues instead of doing it, for [`Machine::replay`]. `None`, without a call of
    /// `work`, if the machine cannot. What is recorded may be used as long as its kernels, products and memory are.
    ///
    /// Errors: those of `work`; what cannot be recorded. Nothing was done or recorded then.
    fn record(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Machine) -> Result<(), Failure>,
    ) -> Result<Option<GraphId>, Failure> {
        let _ = work;
        Ok(None)
    }

    /// Queues recorded work.
    fn replay(&mut self, graph: GraphId) -> Result<(), Failure> {
        Err(Failure::Other(format!("there is no recorded work {}", graph.0)))
    }

    /// Forgets recorded work once it is done.
    fn forget(&mut self, graph: GraphId) {
        let _ = graph;
    }

    /// Marks this place in the queue.
    fn mark(&mut self) -> Result<(), Failure>;

    /// Waits for all work, clears the marks, and returns the time from each mark to the next.
    fn times(&mut self) -> Result<Vec<Duration>, Failure>;
}

/// The most bytes of one binding.
pub const MAX_BINDING: u64 = (1 << 32) - 256;

/// A failure on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is too little memory, which was noticed before any work of a step.
    OutOfMemory {
        bytes: u64,
    },
    /// The device is lost, and every later call fails, too.
    Lost(String),
    Other(String),
}

impl Failure {
    /// The reason, for messages.
    pub fn reason(&self) -> String {
        match self {
            Failure::OutOfMemory { bytes } => format!("no memory for {bytes} bytes"),
            Failure::Lost(reason) | Failure::Other(reason) => reason.clone(),
        }
    }
}

/// A loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub usize);

/// A prepared form of product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductId(pub usize);

/// Recorded work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// A queued read.
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
    /// The threads of a block, which has one dimension.
    pub block: u32,
    /// Bytes of dynamic shared memory, as in the kernel's text.
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

/// A form of product, `c [m, n] = scale * op(a) op(b) + bias + residual`, summed in f32 and rounded once to the type of
/// `c`. It always gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Whether `a` is stored as `[m, k]` or `[k, m]`, and `b` as `[k, n]` or `[n, k]`.
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The first factor; both have the same type: f32, bf16 or f16.
    pub a: Matrix,
    pub b: Matrix,
    /// The result: f32, or the type of the factors.
    pub c: Matrix,
    /// Whether there is a bias `[n]` of f32. The result is f32 then.
    pub bias: bool,
    /// Whether there is a residual, which has the form of `c`.
    pub residual: bool,
    /// Whether f32 factors may be rounded to TF32.
    pub tf32: bool,
}

/// The addresses of a product's factors. They are multiples of 16; those of absent factors are not read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub bias: u64,
    /// The residual, which may be `c`.
    pub residual: u64,
    pub scale: f32,
}
