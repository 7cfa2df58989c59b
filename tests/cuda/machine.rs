//! A machine emulated on the CPU: kernels compiled by g++ against `shim.h`, products as loops.

use half::{bf16, f16};
use libloading::Library;
use sparta_backend_cuda::{
    Arguments, Factors, Failure, KernelId, KernelText, MAX_BINDING, Machine, Matrix, Product, ProductId, Reading,
    Threads,
};
use sparta_graph::ops::Layout;
use sparta_graph::{DType, DeviceInfo, DeviceKind};
use std::alloc::{Layout as Block, alloc_zeroed, dealloc};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How many compilers run at a time.
const COMPILERS: usize = 2;

/// The variants of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The order of blocks, warps and threads: forwards, backwards or mixed; in the last two, a warp runs for as long
    /// as it can.
    pub order: i32,
    /// Whether there is a library of products.
    pub products: bool,
    /// What is wrong in a kernel.
    pub fault: Option<Fault>,
}

/// A kernel, a part of its text, and what stands there instead.
pub type Fault = (&'static str, &'static str, &'static str);

impl Options {
    /// A kernel with the fault that is meant for it. Panics if its text has no such part.
    fn planted(&self, kernel: &KernelText) -> KernelText {
        let Some((_, from, to)) = self.fault.filter(|(entry, ..)| *entry == kernel.entry) else {
            return kernel.clone();
        };
        assert!(kernel.text.contains(from), "{} does not contain: {from}", kernel.entry);
        KernelText { text: kernel.text.replacen(from, to, 1), ..kernel.clone() }
    }
}

/// Takes the grid, the threads of a block and its bytes of dynamic shared memory, the order, the arguments.
type Emulate = unsafe extern "C" fn(*const u32, *const u32, i32, *mut *mut c_void) -> *const c_char;

struct Kernel {
    name: String,
    emulate: Emulate,
    _library: Library,
}

pub struct Emulated {
    options: Options,
    /// Bytes by address.
    memory: BTreeMap<u64, usize>,
    kernels: Vec<Kernel>,
    products: Vec<Product>,
    reads: HashMap<u64, Vec<u8>>,
    next_read: u64,
    marks: Vec<Instant>,
    /// This machine's own copies of the kernels, since each has its own variables.
    folder: tempfile::TempDir,
}

impl Emulated {
    pub fn new(options: Options) -> Self {
        Emulated {
            options,
            memory: BTreeMap::new(),
            kernels: vec![],
            products: vec![],
            reads: HashMap::new(),
            next_read: 0,
            marks: vec![],
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Panics if a range is not part of an allocation: the backend must not ask for it.
    fn range(&self, address: u64, bytes: usize) -> *mut u8 {
        let block = self.memory.range(..=address).next_back();
        let inside = block.is_some_and(|(start, size)| address + bytes as u64 <= start + *size as u64);
        assert!(inside, "{bytes} bytes at {address:#x} are not in this machine's memory");
        address as *mut u8
    }

    fn open(&self, text: &KernelText, library: &Path) -> Kernel {
        let own = self.folder.path().join(format!("{}{}.so", text.entry, self.kernels.len()));
        fs::copy(library, &own).unwrap();
        // SAFETY: the library was made of a kernel and shim.h, and its initialisers are those of the C++ library.
        let library = unsafe { Library::new(&own) }.unwrap();
        fs::remove_file(own).unwrap();
        // SAFETY: SHIM_EXPORT gives the symbol this type.
        let emulate = *unsafe { library.get::<Emulate>(b"emulate\0") }.unwrap();
        Kernel { name: text.entry.clone(), emulate, _library: library }
    }
}

/// The directory where compiled kernels are kept between runs.
fn kept() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn flags() -> Vec<&'static str> {
    // A unique symbol exists once per process: threads with separate machines would share stacks.
    let mut flags =
        vec!["-std=c++17", "-O1", "-ffp-contract=off", "-fno-gnu-unique", "-fPIC", "-shared", "-w", "-nostdinc++"];
    flags.extend(checks_accesses().then_some("-fsanitize=address"));
    flags
}

/// Whether kernels are compiled with AddressSanitizer.
pub fn checks_accesses() -> bool {
    std::env::var_os("SPARTA_CUDA_ADDRESSES").is_some()
}

/// A kernel being compiled, in its own folder.
struct Compiling {
    child: Child,
    folder: tempfile::TempDir,
}

/// Starts to compile a kernel unless it exists. Returns the library's path.
fn compile(text: &KernelText) -> (PathBuf, Option<Compiling>) {
    let shim = include_str!("shim.h");
    let whole = format!("{shim}\n#line 1\n{}\nSHIM_EXPORT({})\n", text.text, text.entry);
    let mut hash = DefaultHasher::new();
    (&whole, flags()).hash(&mut hash);
    let path = kept().join(format!("{}{:016x}.so", text.entry, hash.finish()));
    if path.exists() {
        return (path, None);
    }
    let folder = tempfile::tempdir_in(kept()).unwrap();
    let source = folder.path().join("kernel.cpp");
    fs::write(&source, whole).unwrap();
    let mut command = Command::new("g++");
    command.args(flags()).arg("-o").arg(folder.path().join("kernel.so")).arg(source).stderr(Stdio::piped());
    (path, Some(Compiling { child: command.spawn().expect("g++"), folder }))
}

/// Publishes a compiled kernel atomically, since others may have compiled the same.
fn compiled(path: &Path, compiling: Option<Compiling>) -> Result<(), Failure> {
    let Some(Compiling { child, folder }) = compiling else { return Ok(()) };
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::Other(format!("{}: {said}", folder.keep().display())));
    }
    fs::rename(folder.path().join("kernel.so"), path).unwrap();
    Ok(())
}

impl Machine for Emulated {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: "cuda:emulated".into(),
            name: format!("CUDA C++ on the CPU, {:?}", self.options),
            kind: DeviceKind::DiscreteGpu,
            card: None,
            driver: String::new(),
            memory: None,
            max_buffer: u64::MAX,
            max_binding: Some(MAX_BINDING),
            segments: false,
            in_place: true,
            activations: vec![DType::F32, DType::BF16],
            products: vec![DType::BF16],
            multiplier: None,
            rounds_in_attention: false,
            tf32: self.options.products,
            sampled_cost: None,
            own_kernels: vec![],
        }
    }

    fn capability(&self) -> (u32, u32) {
        (8, 0)
    }

    fn alloc(&mut self, bytes: usize) -> Result<u64, Failure> {
        assert!(bytes > 0);
        // SAFETY: the size is not zero.
        let address = unsafe { alloc_zeroed(Block::from_size_align(bytes, 256).unwrap()) } as u64;
        assert!(address != 0, "no memory for {bytes} bytes");
        self.memory.insert(address, bytes);
        Ok(address)
    }

    fn free(&mut self, address: u64) {
        let bytes = self.memory.remove(&address).expect("memory of this machine");
        // SAFETY: it was allocated with this layout, and is forgotten now.
        unsafe { dealloc(address as *mut u8, Block::from_size_align(bytes, 256).unwrap()) };
    }

    unsafe fn write(&mut self, to: u64, data: &[u8]) -> Result<(), Failure> {
        // SAFETY: `range` has checked the range.
        unsafe { self.range(to, data.len()).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn read(&mut self, from: u64, out: &mut [u8]) -> Result<(), Failure> {
        // SAFETY: `range` has checked the range.
        unsafe { self.range(from, out.len()).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    unsafe fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), Failure> {
        let (from, to) = (self.range(from, bytes), self.range(to, bytes));
        // SAFETY: `range` has checked the ranges.
        unsafe { to.copy_from(from, bytes) };
        Ok(())
    }

    unsafe fn start_read(&mut self, from: u64, bytes: usize) -> Result<Reading, Failure> {
        let mut out = vec![0; bytes];
        // SAFETY: the caller's promise is the one that `read` asks for.
        unsafe { self.read(from, &mut out) }?;
        self.next_read += 1;
        self.reads.insert(self.next_read, out);
        Ok(Reading(self.next_read))
    }

    fn finish_read(&mut self, reading: Reading, out: &mut [u8]) -> Result<(), Failure> {
        out.copy_from_slice(&self.reads.remove(&reading.0).expect("a read of this machine"));
        Ok(())
    }

    fn load(&mut self, kernels: &[KernelText]) -> Result<Vec<KernelId>, Failure> {
        let mut ids = vec![];
        let kernels: Vec<KernelText> = kernels.iter().map(|kernel| self.options.planted(kernel)).collect();
        for some in kernels.chunks(COMPILERS) {
            let compiling: Vec<_> = some.iter().map(compile).collect();
            for (text, (path, child)) in some.iter().zip(compiling) {
                compiled(&path, child)?;
                ids.push(KernelId(self.kernels.len()));
                self.kernels.push(self.open(text, &path));
            }
        }
        Ok(ids)
    }

    unsafe fn launch(
        &mut self,
        kernel: KernelId,
        grid: [u32; 3],
        threads: Threads,
        arguments: &mut Arguments,
    ) -> Result<(), Failure> {
        let Kernel { name, emulate, .. } = &self.kernels[kernel.0];
        let (threads, pointers) = ([threads.block, threads.shared], arguments.pointers().as_mut_ptr());
        // SAFETY: the caller promises the arguments of the kernel.
        let wrong = unsafe { emulate(grid.as_ptr(), threads.as_ptr(), self.options.order, pointers) };
        if wrong.is_null() {
            return Ok(());
        }
        // SAFETY: a string of the library's, that is there until the next launch.
        let wrong = unsafe { CStr::from_ptr(wrong) }.to_string_lossy();
        Err(Failure::Other(format!("{name}: {wrong}")))
    }

    fn product(&mut self, product: &Product) -> Result<Option<ProductId>, Failure> {
        let Product { a, b, c, bias, tf32, .. } = product;
        let narrow = c.dtype == a.dtype && !bias || c.dtype == DType::F32;
        let alike = a.dtype == b.dtype && (!tf32 || a.dtype == DType::F32);
        assert!(alike && narrow, "no library multiplies {product:?}");
        if !self.options.products {
            return Ok(None);
        }
        self.products.push(*product);
        Ok(Some(ProductId(self.products.len() - 1)))
    }

    unsafe fn multiply(&mut self, product: ProductId, factors: &Factors) -> Result<(), Failure> {
        let Product { layout, m, n, k, a, b, c, bias, residual, tf32 } = self.products[product.0];
        let wide = a.dtype == DType::F32 && !tf32;
        // Cut off to TF32.
        let cut = |x: f64| if tf32 { f64::from(f32::from_bits((x as f32).to_bits() & !0x1fff)) } else { x };
        let all = |address, form, rows, stored_turned| {
            let shape = if stored_turned { (k, rows) } else { (rows, k) };
            let values = Values::new(self, address, form, shape);
            let at = |i, t| if stored_turned { values.get(t, i) } else { values.get(i, t) };
            (0..rows).flat_map(|i| (0..k).map(move |t| (i, t))).map(|(i, t)| cut(at(i, t))).collect::<Vec<f64>>()
        };
        let added = residual.then(|| Values::new(self, factors.residual, c, (m, n)));
        let bias = bias.then(|| Values::new(self, factors.bias, Matrix { dtype: DType::F32, stride: n }, (1, n)));
        let rows = all(factors.a, a, m, layout == Layout::Tn);
        let columns = all(factors.b, b, n, layout != Layout::Nt);
        let c = Values::new(self, factors.c, c, (m, n));
        for i in 0..m {
            for j in 0..n {
                let (row, column) = (&rows[i * k..][..k], &columns[j * k..][..k]);
                let sum =
                    if wide { row.iter().zip(column).map(|(x, y)| x * y).sum() } else { tensor_core_sum(row, column) };
                let more = bias.as_ref().map_or(0.0, |bias| bias.get(0, j));
                let more = more + added.as_ref().map_or(0.0, |added| added.get(i, j));
                c.set(i, j, (f64::from(factors.scale) * sum + more) as f32);
            }
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<(), Failure> {
        self.marks.push(Instant::now());
        Ok(())
    }

    fn times(&mut self) -> Result<Vec<Duration>, Failure> {
        let marks = std::mem::take(&mut self.marks);
        Ok(marks.windows(2).map(|pair| pair[1] - pair[0]).collect())
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        for address in self.memory.keys().copied().collect::<Vec<_>>() {
            self.free(address);
        }
    }
}

/// The sum of products as tensor cores compute it: 16 addends and the sum so far are cut off two bits below f32's last,
/// as seen from the largest of them, and their total is cut off to f32.
fn tensor_core_sum(row: &[f64], column: &[f64]) -> f64 {
    row.chunks(16).zip(column.chunks(16)).fold(0.0, |sum, (row, column)| {
        let mut addends = [sum; 17];
        addends[1..].iter_mut().zip(row).zip(column).for_each(|((addend, x), y)| *addend = x * y);
        let addends = &addends[..=row.len()];
        let largest = addends.iter().fold(0f64, |most, x| most.max(x.abs()));
        if largest == 0.0 || addends.iter().any(|x| !x.is_finite()) {
            return addends.iter().sum();
        }
        // The power of two at or below the largest addend, without its sign and mantissa.
        let unit = f64::from_bits(largest.to_bits() & f64::INFINITY.to_bits()) * 2f64.powi(-25);
        let exact: f64 = addends.iter().map(|x| (x / unit).trunc() * unit).sum();
        let near = exact as f32;
        let beyond = f64::from(near).abs() > exact.abs();
        f64::from(if beyond { f32::from_bits(near.to_bits() - 1) } else { near })
    })
}

/// A matrix in memory.
struct Values {
    start: *mut u8,
    form: Matrix,
}

impl Values {
    /// Panics if the matrix is not entirely in memory, or not aligned as a library needs it.
    fn new(machine: &Emulated, address: u64, form: Matrix, (rows, columns): (usize, usize)) -> Self {
        assert!(address.is_multiple_of(16), "a factor at {address:#x}");
        assert!(columns <= form.stride, "{columns} columns in rows of {form:?}");
        let elements = (rows - 1) * form.stride + columns;
        Values { start: machine.range(address, elements * form.dtype.size()), form }
    }

    fn at(&self, row: usize, column: usize) -> *mut u8 {
        self.start.wrapping_add((row * self.form.stride + column) * self.form.dtype.size())
    }

    fn get(&self, row: usize, column: usize) -> f64 {
        let at = self.at(row, column);
        // SAFETY: `new` has checked that the matrix is in memory, aligned to 16 bytes.
        unsafe {
            match self.form.dtype {
                DType::BF16 => bf16::from_bits(at.cast::<u16>().read()).to_f64(),
                DType::F16 => f16::from_bits(at.cast::<u16>().read()).to_f64(),
                DType::F32 | DType::U32 => f64::from(at.cast::<f32>().read()),
            }
        }
    }

    fn set(&self, row: usize, column: usize, value: f32) {
        let at = self.at(row, column);
        // SAFETY: as in `get`.
        unsafe {
            match self.form.dtype {
                DType::BF16 => at.cast::<u16>().write(bf16::from_f32(value).to_bits()),
                DType::F16 => at.cast::<u16>().write(f16::from_f32(value).to_bits()),
                DType::F32 | DType::U32 => at.cast::<f32>().write(value),
            }
        }
    }
}
