//! A GPU: the driver's memory and queue, kernels from NVRTC, products from cuBLASLt.

mod driver;
mod graph;
mod product;
#[cfg(all(test, unix))]
mod tests;
mod transfer;
mod tune;

pub use driver::{Card, NoDriver};

use crate::compile::{Cache, Compiler};
use crate::libraries::Search;
use crate::machine::{
    Arguments, Factors, Failure, GraphId, KernelId, KernelText, MAX_BINDING, Machine, Product, ProductId, Reading,
    Threads,
};
use crate::overrides::TENSOR_CORES;
use crate::products::SAMPLED_COST;
use driver::{Context, Driver, EVENT_DEFAULT, Event, Function, HIDDEN, MAX_DYNAMIC_SHARED_SIZE_BYTES, Stream};
use graph::Graphs;
use product::{CublasLt, Products};
use sparta_graph::{DType, DeviceInfo, DeviceKind, memory_size};
use std::env;
use std::ffi::CString;
use std::ptr;
use std::sync::{Arc, Once};
use std::time::Duration;
use transfer::{Downloads, Upload};
use tune::Tuner;

/// Bytes that a context uses on a card, including the code of its kernels and of cuBLASLt.
const CONTEXT: u64 = 512 << 20;

/// What a user may change.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Measure cuBLASLt's algorithms and keep the choice on disk, rather than use the one that it expects to be
    /// fastest.
    pub tunes: bool,
    /// Record plans as CUDA graphs.
    pub graphs: bool,
}

impl Settings {
    /// `SPARTA_CUDA_TUNE=1` and `SPARTA_CUDA_GRAPHS=0` change the defaults.
    pub fn of_environment() -> Settings {
        let is = |name: &str, value: &str| env::var_os(name).is_some_and(|set| set == value);
        Settings { tunes: is("SPARTA_CUDA_TUNE", "1"), graphs: !is("SPARTA_CUDA_GRAPHS", "0") }
    }
}

/// The machine's cards, and the libraries to use them with.
pub struct Tools {
    /// Those that kernels can be compiled for.
    pub cards: Vec<Card>,
    settings: Settings,
    driver: Arc<Driver>,
    compiler: Arc<Compiler>,
    /// The library for products, or why there is none.
    products: Result<Arc<CublasLt>, String>,
    cache: Cache,
}

impl Tools {
    /// Loads the libraries. Creates no context on any card.
    ///
    /// Errors: no driver or no card; a missing library, and how to get it; no card that NVRTC can compile for.
    pub fn load(search: &Search, cache: Cache, settings: Settings) -> Result<Tools, NoDriver> {
        let driver = Driver::start(search)?;
        let mut cards = driver.cards()?;
        if cards.is_empty() {
            return Err(NoDriver::Absent(format!("{} found no card; {HIDDEN}", driver.title())));
        }
        let compiler = Compiler::open(search, driver.major());
        let compiler =
            compiler.map_err(|why| NoDriver::Broken(format!("{} is installed, but {why}", driver.title())))?;
        // A card that is listed must open: `--device auto` may choose it.
        let unfit = |card: &Card| -> Option<String> {
            compiler.architecture(card.capability).err().map(|why| format!("{}: {why}", card.name))
        };
        if let Some(reasons) = cards.iter().map(unfit).collect::<Option<Vec<String>>>() {
            return Err(NoDriver::Broken(reasons.join("; ")));
        }
        cards.retain(|card| unfit(card).is_none());
        let products = CublasLt::open(search, driver.major()).map(Arc::new);
        Ok(Tools { cards, settings, driver: Arc::new(driver), compiler: Arc::new(compiler), products, cache })
    }

    /// What chooses the algorithms of products on a card, if they are to be measured.
    fn tuner(&self, card: &Card) -> Option<Tuner> {
        let title = format!("{} {:?}, {}", card.name, card.capability, self.info(card).driver);
        self.settings.tunes.then(|| Tuner { cache: self.cache.clone(), title })
    }

    /// The entry of a card in `devices`.
    pub fn info(&self, card: &Card) -> DeviceInfo {
        let memory = card.memory.saturating_sub(CONTEXT);
        let tensor_cores = card.capability >= TENSOR_CORES && self.products.is_ok();
        let products = match &self.products {
            Ok(library) if self.settings.tunes => format!("{} (tuned)", library.title()),
            Ok(library) => library.title(),
            Err(reason) => format!("products are slow, as {reason}"),
        };
        DeviceInfo {
            id: format!("cuda:{}", card.ordinal),
            name: card.name.clone(),
            kind: if card.integrated { DeviceKind::IntegratedGpu } else { DeviceKind::DiscreteGpu },
            card: card.place.clone(),
            driver: format!("{}, {}, {products}", self.driver.title(), self.compiler.title()),
            memory: Some(memory),
            max_buffer: memory,
            max_binding: Some(MAX_BINDING),
            segments: true,
            in_place: true,
            activations: vec![DType::F32, DType::BF16],
            products: if tensor_cores { vec![DType::BF16] } else { vec![] },
            multiplier: Some(if tensor_cores { "tensor cores bf16" } else { "f32" }.into()),
            rounds_in_attention: card.capability >= TENSOR_CORES,
            tf32: tensor_cores,
            sampled_cost: Some(SAMPLED_COST),
            own_kernels: vec![],
        }
    }
}

/// A context on a card. Everything created in it is destroyed with it, and an error in it does not affect others.
pub struct Session {
    pub driver: Arc<Driver>,
    context: Context,
    pub stream: Stream,
}

impl Session {
    fn open(driver: &Arc<Driver>, card: &Card) -> Result<Session, Failure> {
        let (mut device, mut context) = (0, ptr::null_mut());
        // SAFETY: the pointers are to live locals.
        unsafe {
            driver.check("cuDeviceGet", (driver.functions.cuDeviceGet)(&mut device, card.ordinal))?;
            let made = (driver.functions.cuCtxCreate_v2)(&mut context, 0, device);
            driver.check_memory("cuCtxCreate", made, CONTEXT as usize)?;
        }
        let mut session = Session { driver: driver.clone(), context, stream: ptr::null_mut() };
        // SAFETY: the context is current to this thread now; the pointer is to a live field.
        let made = unsafe { (driver.functions.cuStreamCreate)(&mut session.stream, driver::STREAM_NON_BLOCKING) };
        driver.check("cuStreamCreate", made)?;
        Ok(session)
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<(), Failure> {
        // SAFETY: the context lives as long as the session.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.functions.cuCtxSetCurrent)(self.context) })
    }

    /// Waits for all work in the queue.
    pub fn wait(&self) -> Result<(), Failure> {
        // SAFETY: the stream lives as long as the context.
        self.driver.check("cuStreamSynchronize", unsafe { (self.driver.functions.cuStreamSynchronize)(self.stream) })
    }

    pub fn event(&self, flags: u32) -> Result<Event, Failure> {
        let mut event = ptr::null_mut();
        // SAFETY: the pointer is to a live local.
        self.driver.check("cuEventCreate", unsafe { (self.driver.functions.cuEventCreate)(&mut event, flags) })?;
        Ok(event)
    }

    pub fn record(&self, event: Event) -> Result<(), Failure> {
        // SAFETY: both were made in this context, in which they live as long.
        self.driver.check("cuEventRecord", unsafe { (self.driver.functions.cuEventRecord)(event, self.stream) })
    }

    /// Waits for the work queued before an event.
    pub fn wait_for(&self, event: Event) -> Result<(), Failure> {
        // SAFETY: as in `record`.
        self.driver.check("cuEventSynchronize", unsafe { (self.driver.functions.cuEventSynchronize)(event) })
    }

    /// The time between two events whose work is done.
    pub fn elapsed(&self, start: Event, end: Event) -> Result<Duration, Failure> {
        let mut milliseconds = 0f32;
        // SAFETY: as in `record`, and the pointer is to a live local.
        let asked = unsafe { (self.driver.functions.cuEventElapsedTime)(&mut milliseconds, start, end) };
        self.driver.check("cuEventElapsedTime", asked)?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }

    pub fn forget(&self, event: Event) -> Result<(), Failure> {
        // SAFETY: the event was made in this context and is destroyed once.
        self.driver.check("cuEventDestroy", unsafe { (self.driver.functions.cuEventDestroy_v2)(event) })
    }

    /// Bytes of the card that nobody uses.
    fn unused(&self) -> Result<u64, Failure> {
        let (mut unused, mut all) = (0, 0);
        // SAFETY: the context is current to this thread, and the pointers are to live locals.
        let asked = unsafe { (self.driver.functions.cuMemGetInfo_v2)(&mut unused, &mut all) };
        self.driver.check("cuMemGetInfo", asked)?;
        Ok(unused as u64)
    }

    /// Memory filled with zeros.
    pub fn alloc(&self, bytes: usize) -> Result<u64, Failure> {
        let (functions, mut address) = (&self.driver.functions, 0);
        // SAFETY: the pointer is to a live local.
        let made = unsafe { (functions.cuMemAlloc_v2)(&mut address, bytes) };
        self.driver.check_memory("cuMemAlloc", made, bytes)?;
        // SAFETY: `bytes` bytes were allocated at the address just now.
        let cleared = unsafe { (functions.cuMemsetD8Async)(address, 0, bytes, self.stream) };
        self.driver.check("cuMemsetD8Async", cleared)?;
        Ok(address)
    }

    /// Frees what `alloc` returned, which no work in the queue uses.
    pub fn free(&self, address: u64) -> Result<(), Failure> {
        // SAFETY: the address is one of `alloc`.
        self.driver.check("cuMemFree", unsafe { (self.driver.functions.cuMemFree_v2)(address) })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the context was made by `open` and is destroyed once. Errors no longer matter.
        unsafe { (self.driver.functions.cuCtxDestroy_v2)(self.context) };
    }
}

/// The memory that a card has for us, of which `unused` bytes are unused now that it is open. Warns if other processes
/// use much of it.
fn left(info: &DeviceInfo, unused: u64) -> Option<u64> {
    let all = info.memory?;
    if unused.saturating_add(CONTEXT) < all {
        let (id, left, all) = (&info.id, memory_size(unused), memory_size(all));
        eprintln!("warning: {id}: others use the card: {left} of {all} is free, and runs are planned to fit that");
    }
    Some(all.min(unused))
}

/// An open card.
pub struct Gpu {
    info: DeviceInfo,
    card: Card,
    /// What is in the context, or why the device is lost.
    work: Result<Work, String>,
}

/// Everything in a context. Fields are dropped in this order, so the context comes last.
struct Work {
    products: Option<Products>,
    /// `None` if plans are not recorded.
    graphs: Option<Graphs>,
    upload: Upload,
    downloads: Downloads,
    kernels: Vec<Function>,
    marks: Vec<Event>,
    /// Events of earlier marks.
    spare: Vec<Event>,
    compiler: Arc<Compiler>,
    architecture: String,
    cache: Cache,
    session: Session,
}

// SAFETY: the driver's handles may be used by any thread, which `Gpu::run` makes the context current to, one at a time.
unsafe impl Send for Work {}

impl Gpu {
    /// Opens a card.
    pub fn open(tools: &Tools, card: &Card) -> Result<Gpu, Failure> {
        let architecture = tools.compiler.architecture(card.capability).map_err(Failure::Other)?;
        let session = Session::open(&tools.driver, card)?;
        let products = match &tools.products {
            Ok(library) => Some(Products::new(library.clone(), &session, tools.tuner(card))?),
            Err(reason) => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| eprintln!("warning: cuda:{}: products are slow, as {reason}", card.ordinal));
                None
            }
        };
        let work = Work {
            products,
            graphs: tools.settings.graphs.then(Graphs::default),
            upload: Upload::new(&session)?,
            downloads: Downloads::new(&session)?,
            kernels: Vec::new(),
            marks: Vec::new(),
            spare: Vec::new(),
            compiler: tools.compiler.clone(),
            architecture,
            cache: tools.cache.clone(),
            session,
        };
        let mut info = tools.info(card);
        // A card that shares the host's memory gets more than is unused, as the system makes room.
        if !card.integrated {
            info.memory = left(&info, work.session.unused()?);
        }
        Ok(Gpu { info, card: card.clone(), work: Ok(work) })
    }

    /// Runs `call` in the context. After an error that loses the device, every call returns that error, and the context
    /// is gone with its memory, which the device needs when it is opened again.
    fn run<T>(&mut self, call: impl FnOnce(&mut Work) -> Result<T, Failure>) -> Result<T, Failure> {
        let work = self.work.as_mut().map_err(|reason| Failure::Lost(reason.clone()))?;
        let done = work.session.enter().and_then(|()| call(work));
        if let Err(Failure::Lost(reason)) = &done {
            self.work = Err(reason.clone());
        }
        done
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Queued work uses what is dropped here. Errors no longer matter.
        if let Ok(work) = &self.work {
            let _ = work.session.enter().and_then(|()| work.session.wait());
        }
    }
}

impl Work {
    fn load(&mut self, kernels: &[KernelText]) -> Result<Vec<KernelId>, Failure> {
        let codes = self.compiler.compile_all(kernels, &self.architecture, &self.cache).map_err(Failure::Other)?;
        let loaded = kernels.iter().zip(&codes).map(|(kernel, code)| {
            self.kernels.push(self.function(kernel, code)?);
            Ok(KernelId(self.kernels.len() - 1))
        });
        loaded.collect()
    }

    fn function(&self, kernel: &KernelText, code: &[u8]) -> Result<Function, Failure> {
        let (driver, functions) = (&self.session.driver, &self.session.driver.functions);
        let named = |call: &str| format!("kernel {}: {call}", kernel.entry);
        let entry = CString::new(kernel.entry.as_str()).map_err(|_| Failure::Other(named("a zero in its name")))?;
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the code is a whole cubin, the name ends with a zero, and the other pointers are to live locals.
        unsafe {
            let loaded = (functions.cuModuleLoadData)(&mut module, code.as_ptr().cast());
            driver.check_memory(&named("cuModuleLoadData"), loaded, code.len())?;
            let found = (functions.cuModuleGetFunction)(&mut function, module, entry.as_ptr());
            // It may load the code.
            driver.check_memory(&named("cuModuleGetFunction"), found, code.len())?;
        }
        if kernel.shared > 0 {
            let shared = i32::try_from(kernel.shared).unwrap_or(i32::MAX);
            // SAFETY: the function was found.
            let set = unsafe { (functions.cuFuncSetAttribute)(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared) };
            driver.check(&named(&format!("cuFuncSetAttribute to {shared} bytes of shared memory")), set)?;
        }
        Ok(function)
    }

    fn times(&mut self) -> Result<Vec<Duration>, Failure> {
        let marks = std::mem::take(&mut self.marks);
        let between = marks.windows(2).map(|pair| self.session.elapsed(pair[0], pair[1]));
        let times = self.session.wait().and_then(|()| between.collect());
        self.spare.extend(marks);
        times
    }
}

impl Machine for Gpu {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn capability(&self) -> (u32, u32) {
        self.card.capability
    }

    fn alloc(&mut self, bytes: usize) -> Result<u64, Failure> {
        self.run(|work| work.session.alloc(bytes.max(1)))
    }

    fn free(&mut self, address: u64) {
        // The trait's `free` cannot fail: what the driver does not free is leaked until the context is destroyed.
        let _ = self.run(|work| work.session.wait().and_then(|()| work.session.free(address)));
    }

    unsafe fn write(&mut self, to: u64, data: &[u8]) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the range.
        self.run(|work| unsafe { work.upload.write(&work.session, to, data) })
    }

    unsafe fn read(&mut self, from: u64, out: &mut [u8]) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the range.
        self.run(|work| unsafe { work.downloads.read(&work.session, from, out) })
    }

    unsafe fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), Failure> {
        self.run(|work| {
            let (driver, stream) = (&work.session.driver, work.session.stream);
            // SAFETY: the caller vouches for the ranges.
            let copied = unsafe { (driver.functions.cuMemcpyDtoDAsync_v2)(to, from, bytes, stream) };
            driver.check("cuMemcpyDtoDAsync", copied)
        })
    }

    unsafe fn start_read(&mut self, from: u64, bytes: usize) -> Result<Reading, Failure> {
        // SAFETY: the caller vouches for the range.
        self.run(|work| unsafe { work.downloads.start(&work.session, from, bytes) })
    }

    fn finish_read(&mut self, reading: Reading, out: &mut [u8]) -> Result<(), Failure> {
        self.run(|work| work.downloads.finish(&work.session, reading, out))
    }

    fn load(&mut self, kernels: &[KernelText]) -> Result<Vec<KernelId>, Failure> {
        self.run(|work| work.load(kernels))
    }

    unsafe fn launch(
        &mut self,
        kernel: KernelId,
        [x, y, z]: [u32; 3],
        threads: Threads,
        arguments: &mut Arguments,
    ) -> Result<(), Failure> {
        self.run(|work| {
            let function = *work.kernels.get(kernel.0).ok_or_else(|| Failure::Other("no such kernel".into()))?;
            let (driver, stream) = (&work.session.driver, work.session.stream);
            let pointers = arguments.pointers().as_mut_ptr();
            // SAFETY: the caller vouches for the arguments, which the driver has copied when it returns.
            let launched = unsafe {
                let Threads { block, shared } = threads;
                (driver.functions.cuLaunchKernel)(
                    function,
                    x,
                    y,
                    z,
                    block,
                    1,
                    1,
                    shared,
                    stream,
                    pointers,
                    ptr::null_mut(),
                )
            };
            driver.check("cuLaunchKernel", launched)
        })
    }

    fn product(&mut self, product: &Product) -> Result<Option<ProductId>, Failure> {
        self.run(|work| match &mut work.products {
            Some(products) => products.prepare(&work.session, product),
            None => Ok(None),
        })
    }

    unsafe fn multiply(&mut self, product: ProductId, factors: &Factors) -> Result<(), Failure> {
        self.run(|work| {
            let missing = || Failure::Other("no such product".into());
            // SAFETY: the caller vouches for the factors.
            unsafe { work.products.as_mut().ok_or_else(missing)?.multiply(&work.session, product, factors) }
        })
    }

    fn record(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Machine) -> Result<(), Failure>,
    ) -> Result<Option<GraphId>, Failure> {
        if self.work.as_ref().is_ok_and(|work| work.graphs.is_none()) {
            return Ok(None);
        }
        self.run(|work| graph::begin(&work.session))?;
        let queued = work(self);
        // The recording is ended whatever has failed.
        let ended = self.run(|work| work.graphs.as_mut().map(|graphs| graphs.end(&work.session)).transpose());
        match (queued, ended) {
            (Ok(()), ended) => ended,
            (Err(failure), ended) => {
                ended.ok().flatten().into_iter().for_each(|graph| self.forget(graph));
                Err(failure)
            }
        }
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), Failure> {
        self.run(|work| {
            let missing = || Failure::Other("no such graph".into());
            work.graphs.as_ref().ok_or_else(missing)?.launch(&work.session, graph)
        })
    }

    fn forget(&mut self, graph: GraphId) {
        // What the driver does not destroy is leaked until the context is.
        let _ = self.run(|work| work.graphs.as_mut().map_or(Ok(()), |graphs| graphs.forget(&work.session, graph)));
    }

    fn mark(&mut self) -> Result<(), Failure> {
        self.run(|work| {
            let event = work.spare.pop().map_or_else(|| work.session.event(EVENT_DEFAULT), Ok)?;
            // Stored before recording can fail, so that the event is not leaked.
            work.marks.push(event);
            work.session.record(event)
        })
    }

    fn times(&mut self) -> Result<Vec<Duration>, Failure> {
        self.run(Work::times)
    }
}
