//! The driver's functions. Every call is checked: a failure names the call and the driver's error.

use crate::libraries::{Part, Search, functions};
use crate::machine::Failure;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::ptr;

pub type Context = *mut c_void;
pub type Stream = *mut c_void;
pub type Event = *mut c_void;
pub type Module = *mut c_void;
pub type Function = *mut c_void;
pub type Graph = *mut c_void;
pub type GraphExec = *mut c_void;
type Code = c_int;

functions! {
    /// The functions of libcuda, as declared in `cuda.h`. The newest is from CUDA 11.4.
    pub struct Functions {
        cuInit: fn(c_uint) -> Code;
        cuDriverGetVersion: fn(*mut c_int) -> Code;
        cuGetErrorName: fn(Code, *mut *const c_char) -> Code;
        cuGetErrorString: fn(Code, *mut *const c_char) -> Code;
        cuDeviceGetCount: fn(*mut c_int) -> Code;
        cuDeviceGet: fn(*mut c_int, c_int) -> Code;
        cuDeviceGetName: fn(*mut c_char, c_int, c_int) -> Code;
        cuDeviceTotalMem_v2: fn(*mut usize, c_int) -> Code;
        cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int) -> Code;
        cuDeviceGetPCIBusId: fn(*mut c_char, c_int, c_int) -> Code;
        cuCtxCreate_v2: fn(*mut Context, c_uint, c_int) -> Code;
        cuCtxDestroy_v2: fn(Context) -> Code;
        cuCtxSetCurrent: fn(Context) -> Code;
        cuMemGetInfo_v2: fn(*mut usize, *mut usize) -> Code;
        cuMemAlloc_v2: fn(*mut u64, usize) -> Code;
        cuMemFree_v2: fn(u64) -> Code;
        cuMemsetD8Async: fn(u64, u8, usize, Stream) -> Code;
        cuMemHostAlloc: fn(*mut *mut c_void, usize, c_uint) -> Code;
        cuMemcpyHtoDAsync_v2: fn(u64, *const c_void, usize, Stream) -> Code;
        cuMemcpyDtoHAsync_v2: fn(*mut c_void, u64, usize, Stream) -> Code;
        cuMemcpyDtoDAsync_v2: fn(u64, u64, usize, Stream) -> Code;
        cuStreamCreate: fn(*mut Stream, c_uint) -> Code;
        cuStreamSynchronize: fn(Stream) -> Code;
        cuEventCreate: fn(*mut Event, c_uint) -> Code;
        cuEventRecord: fn(Event, Stream) -> Code;
        cuEventSynchronize: fn(Event) -> Code;
        cuEventElapsedTime: fn(*mut f32, Event, Event) -> Code;
        cuEventDestroy_v2: fn(Event) -> Code;
        cuStreamBeginCapture_v2: fn(Stream, c_int) -> Code;
        cuStreamEndCapture: fn(Stream, *mut Graph) -> Code;
        cuGraphInstantiateWithFlags: fn(*mut GraphExec, Graph, u64) -> Code;
        cuGraphLaunch: fn(GraphExec, Stream) -> Code;
        cuGraphDestroy: fn(Graph) -> Code;
        cuGraphExecDestroy: fn(GraphExec) -> Code;
        cuModuleLoadData: fn(*mut Module, *const c_void) -> Code;
        cuModuleGetFunction: fn(*mut Function, Module, *const c_char) -> Code;
        cuFuncSetAttribute: fn(Function, c_int, c_int) -> Code;
        cuLaunchKernel: fn(
            Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Stream, *mut *mut c_void, *mut *mut c_void
        ) -> Code;
    }
}

/// What to do about too little memory.
pub const TO_HAVE_MEMORY: &str = "end other programs, or lower --micro-batch-tokens";

const OUT_OF_MEMORY: Code = 2;
const STUB_LIBRARY: Code = 34;
const NO_DEVICE: Code = 100;

/// What to look at if no card is found.
pub const HIDDEN: &str = "CUDA_VISIBLE_DEVICES may hide it";

pub const STREAM_NON_BLOCKING: c_uint = 1;
pub const EVENT_DEFAULT: c_uint = 0;
pub const EVENT_DISABLE_TIMING: c_uint = 2;
pub const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;

const ATTRIBUTE_INTEGRATED: c_int = 18;
const ATTRIBUTE_MAJOR: c_int = 75;
const ATTRIBUTE_MINOR: c_int = 76;

/// Whether the context is unusable after this error: CUDA's sticky errors, and errors that say it is gone.
fn is_sticky(code: Code) -> bool {
    const DEINITIALIZED: Code = 4;
    const DEVICE_UNAVAILABLE: Code = 46;
    const ECC_UNCORRECTABLE: Code = 214;
    const NVLINK_UNCORRECTABLE: Code = 220;
    const CONTAINED: Code = 226;
    const ILLEGAL_ADDRESS: Code = 700;
    const LAUNCH_TIMEOUT: Code = 702;
    const CONTEXT_IS_DESTROYED: Code = 709;
    const ASSERT: Code = 710;
    // 714 hardware stack, 715 illegal instruction, 716 misaligned address, 717 address space, 718 program counter, 719
    // launch failed.
    const HARDWARE_STACK_ERROR: Code = 714;
    const LAUNCH_FAILED: Code = 719;
    const TENSOR_MEMORY_LEAK: Code = 721;
    const MPS_CLIENT_TERMINATED: Code = 810;
    const EXTERNAL_DEVICE: Code = 911;
    const UNKNOWN: Code = 999;
    matches!(code, HARDWARE_STACK_ERROR..=LAUNCH_FAILED)
        || [DEINITIALIZED, DEVICE_UNAVAILABLE, ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE, CONTAINED].contains(&code)
        || [ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, CONTEXT_IS_DESTROYED, ASSERT, TENSOR_MEMORY_LEAK].contains(&code)
        || [MPS_CLIENT_TERMINATED, EXTERNAL_DEVICE, UNKNOWN].contains(&code)
}

/// The driver, started.
pub struct Driver {
    pub functions: Functions,
    /// The newest CUDA it supports: 13000 is 13.0.
    pub version: u32,
    /// The driver's own version, such as 580.95.05, if the system reports it.
    pub release: Option<String>,
}

/// A card as listed by the driver.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    pub ordinal: c_int,
    pub name: String,
    pub memory: u64,
    pub capability: (u32, u32),
    pub integrated: bool,
    /// Its address on the PCI bus.
    pub place: Option<String>,
}

/// Why no driver can be used.
#[derive(Clone, Debug, PartialEq)]
pub enum NoDriver {
    /// The machine has no driver or no card, which is not an error.
    Absent(String),
    Broken(String),
}

impl Driver {
    /// Loads and starts the driver.
    pub fn start(search: &Search) -> Result<Driver, NoDriver> {
        let library = search.open(Part::Driver, 1).map_err(NoDriver::Absent)?;
        let functions = Functions::of(library)
            .map_err(|error| NoDriver::Broken(format!("the CUDA driver is older than 470 or not NVIDIA's: {error}")))?;
        let mut driver = Driver { functions, version: 0, release: release() };
        // SAFETY: as cuda.h says: the flags are 0.
        let started = unsafe { (driver.functions.cuInit)(0) };
        match started {
            0 => {}
            NO_DEVICE => return Err(NoDriver::Absent(format!("the CUDA driver found no card; {HIDDEN}"))),
            STUB_LIBRARY => {
                let reason = "libcuda is the toolkit's stub: install NVIDIA's driver, or let the loader find it first";
                return Err(NoDriver::Absent(reason.into()));
            }
            code => return Err(NoDriver::Broken(driver.describe("cuInit", code))),
        }
        let mut version = 0;
        // SAFETY: the pointer is to a live local.
        let asked = unsafe { (driver.functions.cuDriverGetVersion)(&mut version) };
        driver.check("cuDriverGetVersion", asked)?;
        driver.version = u32::try_from(version).unwrap_or(0);
        Ok(driver)
    }

    /// The newest major version of CUDA whose libraries this driver runs.
    pub fn major(&self) -> u32 {
        self.version / 1000
    }

    /// `driver 580.95.05 (CUDA 13.0)`.
    pub fn title(&self) -> String {
        let cuda = format!("CUDA {}.{}", self.major(), self.version % 1000 / 10);
        match &self.release {
            Some(release) => format!("driver {release} ({cuda})"),
            None => format!("driver for {cuda}"),
        }
    }

    /// All cards. Creates no context, so that no memory is used on any.
    pub fn cards(&self) -> Result<Vec<Card>, Failure> {
        let mut count = 0;
        // SAFETY: the pointer is to a live local.
        self.check("cuDeviceGetCount", unsafe { (self.functions.cuDeviceGetCount)(&mut count) })?;
        (0..count).map(|ordinal| self.card(ordinal)).collect()
    }

    fn card(&self, ordinal: c_int) -> Result<Card, Failure> {
        let functions = &self.functions;
        let (mut device, mut name, mut memory) = (0, [0 as c_char; 256], 0);
        // SAFETY: the pointers are to live locals, and the length is that of the array.
        unsafe {
            self.check("cuDeviceGet", (functions.cuDeviceGet)(&mut device, ordinal))?;
            let length = name.len() as c_int - 1;
            self.check("cuDeviceGetName", (functions.cuDeviceGetName)(name.as_mut_ptr(), length, device))?;
            self.check("cuDeviceTotalMem", (functions.cuDeviceTotalMem_v2)(&mut memory, device))?;
        }
        // SAFETY: the array ends with a zero: the driver was given one byte less than its length.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the pointer is to a live local.
            let asked = unsafe { (functions.cuDeviceGetAttribute)(&mut value, which, device) };
            self.check("cuDeviceGetAttribute", asked).map(|()| u32::try_from(value).unwrap_or(0))
        };
        let capability = (attribute(ATTRIBUTE_MAJOR)?, attribute(ATTRIBUTE_MINOR)?);
        let integrated = attribute(ATTRIBUTE_INTEGRATED)? != 0;
        let place = self.place(device);
        Ok(Card { ordinal, name, memory: memory as u64, capability, integrated, place })
    }

    /// The PCI address, such as `0000:01:00.0`, if the card has one.
    fn place(&self, device: c_int) -> Option<String> {
        let mut place = [0 as c_char; 32];
        // SAFETY: the pointer is to a live local of this size.
        let asked =
            unsafe { (self.functions.cuDeviceGetPCIBusId)(place.as_mut_ptr(), place.len() as c_int - 1, device) };
        // SAFETY: the array ends with a zero: the driver was given one byte less than its length.
        (asked == 0).then(|| unsafe { CStr::from_ptr(place.as_ptr()) }.to_string_lossy().to_lowercase())
    }

    /// What a call's code means. Launches may need memory, too, in the middle of a step, so that is not
    /// [`Failure::OutOfMemory`].
    pub fn check(&self, call: &str, code: Code) -> Result<(), Failure> {
        match code {
            0 => Ok(()),
            OUT_OF_MEMORY => Err(Failure::Other(format!("{}; {TO_HAVE_MEMORY}", self.describe(call, code)))),
            code if is_sticky(code) => Err(Failure::Lost(self.describe(call, code))),
            code => Err(Failure::Other(self.describe(call, code))),
        }
    }

    /// Like [`Driver::check`], for a call that allocates `bytes` of memory.
    pub fn check_memory(&self, call: &str, code: Code, bytes: usize) -> Result<(), Failure> {
        if code == OUT_OF_MEMORY { Err(Failure::OutOfMemory { bytes: bytes as u64 }) } else { self.check(call, code) }
    }

    /// `cuMemAlloc: CUDA_ERROR_INVALID_VALUE (invalid argument)`.
    fn describe(&self, call: &str, code: Code) -> String {
        let text = |function: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = ptr::null();
            // SAFETY: the driver sets the pointer to one of its own texts, or fails; it lives as long as the driver.
            unsafe {
                (function(code, &mut text) == 0 && !text.is_null())
                    .then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = text(self.functions.cuGetErrorName).unwrap_or_else(|| format!("error {code}"));
        match text(self.functions.cuGetErrorString) {
            Some(meaning) => format!("{call}: {name} ({meaning})"),
            None => format!("{call}: {name}"),
        }
    }
}

impl NoDriver {
    pub fn reason(&self) -> &str {
        match self {
            NoDriver::Absent(reason) | NoDriver::Broken(reason) => reason,
        }
    }
}

impl From<Failure> for NoDriver {
    fn from(failure: Failure) -> NoDriver {
        NoDriver::Broken(failure.reason())
    }
}

/// The version of the kernel module, which Linux reports.
fn release() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}
