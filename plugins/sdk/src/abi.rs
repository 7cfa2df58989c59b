//! The C ABI between the host and a plugin library; `include/sparta_plugin.h` is the same in C.
//!
//! A library exports one symbol, `sparta_plugin_entry(const SpartaHost*) -> const SpartaPlugin*`. Rules:
//!
//! - Every struct starts with its size in bytes. A later minor version appends fields; a reader uses a field only if
//!   the size covers it. `SpartaBytes` never changes.
//! - An interface is found by its id with a major version (`sparta.method/1`). A new major version is a new
//!   interface.
//! - The host owns all memory that crosses: results and errors are handed to it as bytes, which it copies.
//! - Handles are opaque integers. A `SpartaCall` is valid on the calling thread until the function returns.
//! - Messages are JSON, UTF-8: the serde form of the types of [`crate::method`], [`crate::task`],
//!   [`crate::backend`] and [`crate::communicator`].
//! - A function returns [`OK`], or [`FAILED`] after passing a message to `SpartaHost::error`. Neither side lets a
//!   panic or a C++ exception cross the boundary.

pub use sparta_graph::ops::{OwnFunction, RawTensor};
use std::ffi::c_void;

/// The version of [`SpartaHost`], [`SpartaPlugin`] and [`SpartaInterface`].
pub const ABI_MAJOR: u32 = 1;
/// The minor version: its fields and those of all earlier ones are present.
pub const ABI_MINOR: u32 = 5;

/// The name of the exported symbol.
pub const ENTRY: &str = "sparta_plugin_entry";

/// The interface [`SpartaMethod`].
pub const METHOD_ID: &str = "sparta.method/1";
/// The interface [`SpartaTask`].
pub const TASK_ID: &str = "sparta.task/1";
/// The interface [`SpartaBackend`].
pub const BACKEND_ID: &str = "sparta.backend/1";
/// The interface [`SpartaCommunicator`].
pub const COMMUNICATOR_ID: &str = "sparta.communicator/1";

/// [`OK`] or [`FAILED`].
pub type SpartaStatus = i32;
/// The function succeeded.
pub const OK: SpartaStatus = 0;
/// The function failed and passed a message to `SpartaHost::error`.
pub const FAILED: SpartaStatus = 1;

/// Identifies one call of the host into a plugin.
pub type SpartaCall = u64;

/// Borrowed bytes, valid until the function that received them returns. `data` may be null where `len` is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpartaBytes {
    /// The first byte.
    pub data: *const u8,
    /// The number of bytes.
    pub len: usize,
}

impl SpartaBytes {
    /// The bytes of a slice, which must live as long as they are read.
    pub const fn new(bytes: &[u8]) -> Self {
        SpartaBytes { data: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    /// `data` points to `len` readable bytes that stay unchanged for `'a`, or `len` is 0.
    pub unsafe fn as_slice<'a>(self) -> &'a [u8] {
        // SAFETY: the caller vouches for it.
        unsafe { slice(self.data, self.len) }
    }
}

/// A slice from a pointer and a count; a null pointer gives an empty slice.
///
/// # Safety
/// `data` is null, or points to `len` initialised elements that stay unchanged for `'a`.
pub unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if data.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(data, len) }
}

/// What the host offers to a plugin; valid for the life of the process.
#[repr(C)]
pub struct SpartaHost {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// [`ABI_MAJOR`] of the side that provides it.
    pub abi_major: u32,
    /// [`ABI_MINOR`] of the side that provides it.
    pub abi_minor: u32,
    /// Takes the error message of a failing call, for the user.
    pub error: unsafe extern "C" fn(SpartaCall, SpartaBytes),
    /// Takes the result of a call that returns a message or bytes.
    pub result: unsafe extern "C" fn(SpartaCall, SpartaBytes),
    /// The message of the latest host function that failed within this call; valid until the next host function.
    pub last_error: unsafe extern "C" fn(SpartaCall) -> SpartaBytes,
    /// Adds an operation (`Op` as JSON) to the graph of this call: `inputs` are `input_count` values; writes at most
    /// `capacity` values to `outputs` and their number to `output_count`.
    pub graph_apply: unsafe extern "C" fn(
        call: SpartaCall,
        op: SpartaBytes,
        inputs: *const u32,
        input_count: usize,
        outputs: *mut u32,
        capacity: usize,
        output_count: *mut usize,
    ) -> SpartaStatus,
    /// Writes at most `capacity` dimensions of a value's shape to `dims` and their number to `rank`.
    pub graph_shape: unsafe extern "C" fn(
        call: SpartaCall,
        value: u32,
        dims: *mut u64,
        capacity: usize,
        rank: *mut usize,
    ) -> SpartaStatus,
    /// Writes the value that random operations take as their counter.
    pub graph_rng: unsafe extern "C" fn(call: SpartaCall, value: *mut u32) -> SpartaStatus,
    /// Since minor version 4, in `on_step`. Writes the size in bytes of what is read to `byte_count` and, if `capacity`
    /// is large enough, its little-endian elements to `out`: u32 for `indices`, else f32. `what` and `name` as in
    /// [`crate::method::StepTensors`].
    pub step_read: unsafe extern "C" fn(
        call: SpartaCall,
        what: SpartaBytes,
        name: SpartaBytes,
        out: *mut u8,
        capacity: usize,
        byte_count: *mut usize,
    ) -> SpartaStatus,
    /// Since minor version 4, in `on_step`. Sets `values` (f32) or `indices` (u32), little-endian. Once one call of it
    /// fails, `on_step` counts as failed.
    pub step_write:
        unsafe extern "C" fn(call: SpartaCall, what: SpartaBytes, name: SpartaBytes, data: SpartaBytes) -> SpartaStatus,
    /// Since minor version 5. Like `graph_apply` for the plugin's own operation, with its function for the CPU, or null.
    pub graph_own: unsafe extern "C" fn(
        call: SpartaCall,
        op: SpartaBytes,
        function: Option<OwnFunction>,
        inputs: *const u32,
        input_count: usize,
        outputs: *mut u32,
        capacity: usize,
        output_count: *mut usize,
    ) -> SpartaStatus,
}

/// What `sparta_plugin_entry` returns; valid for the life of the process.
#[repr(C)]
pub struct SpartaPlugin {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// [`ABI_MAJOR`] of the side that provides it.
    pub abi_major: u32,
    /// [`ABI_MINOR`] of the side that provides it.
    pub abi_minor: u32,
    /// The number of interfaces.
    pub interface_count: usize,
    /// The interfaces, in any order.
    pub interfaces: *const *const SpartaInterface,
}

// SAFETY: it is immutable and points to immutable statics.
unsafe impl Sync for SpartaPlugin {}

/// One interface that a plugin implements.
#[repr(C)]
pub struct SpartaInterface {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// `sparta.method/1`, `sparta.task/1`, `sparta.backend/1` or `sparta.communicator/1`.
    pub id: SpartaBytes,
    /// The `SpartaMethod`, `SpartaTask`, `SpartaBackend` or `SpartaCommunicator` of that id.
    pub table: *const c_void,
}

// SAFETY: it is immutable and points to immutable statics.
unsafe impl Sync for SpartaInterface {}

/// An array of interfaces that a static can hold.
#[repr(transparent)]
pub struct InterfaceList<const N: usize>(pub [*const SpartaInterface; N]);

// SAFETY: it is immutable and points to immutable statics.
unsafe impl<const N: usize> Sync for InterfaceList<N> {}

/// `sparta.method/1`. Functions may be called from any thread, several at a time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpartaMethod {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// Result: `MethodInfo`, and optionally `"mergeable": false` beside its fields.
    pub describe: Option<unsafe extern "C" fn(SpartaCall) -> SpartaStatus>,
    /// Request: `{"parameters": [Parameter], "options": Options}`; result: `[Selection]`.
    pub select: Option<unsafe extern "C" fn(SpartaCall, request: SpartaBytes) -> SpartaStatus>,
    /// `site` is a `Site`; writes the output to `y`. May be null if nothing is reparametrized.
    pub forward: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            site: SpartaBytes,
            x: u32,
            w: u32,
            extra: *const u32,
            extra_count: usize,
            y: *mut u32,
        ) -> SpartaStatus,
    >,
    /// Writes the merged weight to `merged`. May be null if nothing is reparametrized.
    pub merge: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            site: SpartaBytes,
            w: u32,
            extra: *const u32,
            extra_count: usize,
            merged: *mut u32,
        ) -> SpartaStatus,
    >,
    /// Since minor version 4, may be null. As `forward`, of a layer with a bias `[out]`, which `y` includes.
    pub forward_with_bias: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            site: SpartaBytes,
            x: u32,
            w: u32,
            bias: u32,
            extra: *const u32,
            extra_count: usize,
            y: *mut u32,
        ) -> SpartaStatus,
    >,
    /// Since minor version 4, may be null. As `merge`, of a layer with a bias; writes the weight and the bias to
    /// `merged`.
    pub merge_with_bias: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            site: SpartaBytes,
            w: u32,
            bias: u32,
            extra: *const u32,
            extra_count: usize,
            merged: *mut [u32; 2],
        ) -> SpartaStatus,
    >,
    /// Since minor version 4, may be null. Writes a term of the loss, f32 `[1]`, to `value`, or leaves that as it is.
    pub penalty: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            site: SpartaBytes,
            w: u32,
            extra: *const u32,
            extra_count: usize,
            value: *mut u32,
        ) -> SpartaStatus,
    >,
    /// Since minor version 4, may be null. `values` are those of `extra` after the optimizer's update; overwrites those
    /// that change.
    pub update: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            site: SpartaBytes,
            lr: u32,
            values: *mut u32,
            value_count: usize,
        ) -> SpartaStatus,
    >,
    /// Since minor version 4, may be null. `options` are `Options`; result: `Steps`, or `null` if `on_step` is never
    /// called.
    pub steps: Option<unsafe extern "C" fn(SpartaCall, options: SpartaBytes) -> SpartaStatus>,
    /// Since minor version 4, may be null. Request: `StepInfo`; result: the state for the next call; without a result,
    /// the state stays. Reads and changes tensors with `step_read` and `step_write`.
    pub on_step: Option<unsafe extern "C" fn(SpartaCall, request: SpartaBytes) -> SpartaStatus>,
}

/// `sparta.task/1`. `describe` and `open` may be called from any thread, several at a time; the functions of one data
/// set and its iterators from one thread at a time. A data set outlives its iterators.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpartaTask {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// Result: `TaskPluginInfo`.
    pub describe: Option<unsafe extern "C" fn(SpartaCall) -> SpartaStatus>,
    /// Request: `OpenRequest`; writes the data set's handle.
    pub open: Option<unsafe extern "C" fn(SpartaCall, request: SpartaBytes, dataset: *mut u64) -> SpartaStatus>,
    /// Result: `Recipe`.
    pub recipe: Option<unsafe extern "C" fn(SpartaCall, dataset: u64) -> SpartaStatus>,
    /// Starts reading a part; writes the iterator's handle.
    pub examples:
        Option<unsafe extern "C" fn(SpartaCall, dataset: u64, part: SpartaBytes, iterator: *mut u64) -> SpartaStatus>,
    /// Result: `[Example]`, at most `max`; an empty array is the end.
    pub next: Option<unsafe extern "C" fn(SpartaCall, iterator: u64, max: usize) -> SpartaStatus>,
    /// Ends an iterator.
    pub close_examples: Option<unsafe extern "C" fn(iterator: u64)>,
    /// Ends a data set, after its iterators.
    pub close: Option<unsafe extern "C" fn(dataset: u64)>,
}

/// A piece of work of `submit`. Its layout never changes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpartaWork {
    /// [`WORK_WRITE`] or [`WORK_RUN`].
    pub kind: u64,
    /// The buffer that is written, or the prepared plan that is run.
    pub handle: u64,
    /// For a write: the first element to write.
    pub offset: usize,
    /// For a write: the data, in the form that `write` takes.
    pub data: SpartaBytes,
}

/// A piece of work that writes to a buffer.
pub const WORK_WRITE: u64 = 0;
/// A piece of work that runs a prepared plan.
pub const WORK_RUN: u64 = 1;

/// `sparta.backend/1`. `describe`, `devices` and `open` may be called from any thread; the functions of one opened
/// backend from one thread at a time. Dtypes are their names: `f32`, `bf16`, `f16`, `u32`. Offsets and lengths count
/// elements, byte counts bytes. An error message may be a `BackendError` as JSON or plain text.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpartaBackend {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// Result: `BackendPluginInfo`.
    pub describe: Option<unsafe extern "C" fn(SpartaCall) -> SpartaStatus>,
    /// Result: `[DeviceInfo]`.
    pub devices: Option<unsafe extern "C" fn(SpartaCall) -> SpartaStatus>,
    /// `device` is the id of a `DeviceInfo`; result: the `DeviceInfo` of what was opened; writes the backend's handle.
    pub open: Option<unsafe extern "C" fn(SpartaCall, device: SpartaBytes, backend: *mut u64) -> SpartaStatus>,
    /// Ends a backend, with its buffers and plans.
    pub close: Option<unsafe extern "C" fn(backend: u64)>,
    /// Zero-filled memory for `len` elements; writes the buffer's handle.
    pub alloc: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            backend: u64,
            dtype: SpartaBytes,
            len: usize,
            label: SpartaBytes,
            buffer: *mut u64,
        ) -> SpartaStatus,
    >,
    /// Gives a buffer's memory back.
    pub free: Option<unsafe extern "C" fn(SpartaCall, backend: u64, buffer: u64) -> SpartaStatus>,
    /// Writes elements of the buffer's dtype from `offset` on.
    pub write: Option<
        unsafe extern "C" fn(SpartaCall, backend: u64, buffer: u64, offset: usize, data: SpartaBytes) -> SpartaStatus,
    >,
    /// Reads `byte_count` bytes from the element `offset` on, after all work so far.
    pub read: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            backend: u64,
            buffer: u64,
            offset: usize,
            out: *mut u8,
            byte_count: usize,
        ) -> SpartaStatus,
    >,
    /// `plan` is a `Plan`; writes the prepared plan's handle.
    pub prepare: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            backend: u64,
            plan: SpartaBytes,
            arena: u64,
            externals: *const u64,
            external_count: usize,
            prepared: *mut u64,
        ) -> SpartaStatus,
    >,
    /// Runs a prepared plan.
    pub run: Option<unsafe extern "C" fn(SpartaCall, backend: u64, prepared: u64) -> SpartaStatus>,
    /// Ends a prepared plan.
    pub release: Option<unsafe extern "C" fn(SpartaCall, backend: u64, prepared: u64) -> SpartaStatus>,
    /// Since minor version 1, may be null. As `run`; result: `[u64]`, the nanoseconds of each call of the plan.
    pub run_profiled: Option<unsafe extern "C" fn(SpartaCall, backend: u64, prepared: u64) -> SpartaStatus>,
    /// Since minor version 2, may be null. Writes the bytes that the backend has allocated on the device: now, and at
    /// most so far. Fails if it does not count.
    pub memory:
        Option<unsafe extern "C" fn(SpartaCall, backend: u64, in_use: *mut u64, peak: *mut u64) -> SpartaStatus>,
    /// Since minor version 2, may be null. Does pieces of work in order, with one upload and one submission if the
    /// device can.
    pub submit: Option<
        unsafe extern "C" fn(SpartaCall, backend: u64, work: *const SpartaWork, work_count: usize) -> SpartaStatus,
    >,
    /// Since minor version 2, may be null; then `fetch` is null, too. Asks for what the buffer holds after all work so
    /// far, and does not wait for it; writes the handle of the read.
    pub request: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            backend: u64,
            buffer: u64,
            offset: usize,
            byte_count: usize,
            read: *mut u64,
        ) -> SpartaStatus,
    >,
    /// Since minor version 2, may be null. Waits for a requested read, whose handle ends, and copies it to `out`, as
    /// many bytes as were requested.
    pub fetch: Option<
        unsafe extern "C" fn(SpartaCall, backend: u64, read: u64, out: *mut u8, byte_count: usize) -> SpartaStatus,
    >,
    /// Since minor version 5, may be null; then the backend runs no functions of plugins. Like `prepare`, for a plan with
    /// `own` operations: a function or null for each of them, in order.
    pub prepare_own: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            backend: u64,
            plan: SpartaBytes,
            arena: u64,
            externals: *const u64,
            external_count: usize,
            functions: *const Option<OwnFunction>,
            function_count: usize,
            prepared: *mut u64,
        ) -> SpartaStatus,
    >,
}

/// `sparta.communicator/1`. `describe` and `launched` may be called from any thread; the functions of what was joined from
/// one thread at a time. All processes call the same functions in the same order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpartaCommunicator {
    /// Its size in bytes, which identifies versions with fewer fields.
    pub size: usize,
    /// Result: `CommunicatorPluginInfo`.
    pub describe: Option<unsafe extern "C" fn(SpartaCall) -> SpartaStatus>,
    /// Result: `Launch`, or `null` if this process was started alone.
    pub launched: Option<unsafe extern "C" fn(SpartaCall) -> SpartaStatus>,
    /// Connects to the other processes, once; result: `Place`; writes the communicator's handle.
    pub join: Option<unsafe extern "C" fn(SpartaCall, communicator: *mut u64) -> SpartaStatus>,
    /// Ends the communicator, once the other processes end theirs.
    pub leave: Option<unsafe extern "C" fn(communicator: u64)>,
    /// Returns once all processes have called it.
    pub barrier: Option<unsafe extern "C" fn(SpartaCall, communicator: u64) -> SpartaStatus>,
    /// Overwrites `data` with that of the process `root`.
    pub broadcast: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            communicator: u64,
            root: usize,
            data: *mut u8,
            byte_count: usize,
        ) -> SpartaStatus,
    >,
    /// Writes every process's `own` to `all`, in the order of ranks: `byte_count` is as many times `own.len` as there
    /// are processes.
    pub all_gather: Option<
        unsafe extern "C" fn(
            call: SpartaCall,
            communicator: u64,
            own: SpartaBytes,
            all: *mut u8,
            byte_count: usize,
        ) -> SpartaStatus,
    >,
    /// Overwrites `values` with their sums over all processes, the same in each.
    pub all_reduce:
        Option<unsafe extern "C" fn(SpartaCall, communicator: u64, values: *mut f32, count: usize) -> SpartaStatus>,
    /// Ends all processes, for this reason.
    pub abort: Option<unsafe extern "C" fn(communicator: u64, reason: SpartaBytes)>,
}
