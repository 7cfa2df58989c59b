//! Compiles CUDA C++ with NVRTC to machine code for one architecture, and caches it on disk.
//!
//! Machine code rather than PTX, so that the driver may be older than NVRTC and has nothing left to compile. The
//! options are NVRTC's defaults: division and square roots are rounded as IEEE 754 says, subnormal numbers are kept,
//! and `a * b + c` may be one rounding instead of two, as in WGSL.

use crate::libraries::{PATH_VARIABLE, Part, Search, functions};
use crate::machine::KernelText;
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

type Program = *mut c_void;
type Code = c_int;

functions! {
    /// The functions of libnvrtc, as declared in `nvrtc.h`. The newest is from CUDA 11.2.
    struct Functions {
        nvrtcVersion: fn(*mut c_int, *mut c_int) -> Code;
        nvrtcGetErrorString: fn(Code) -> *const c_char;
        nvrtcGetNumSupportedArchs: fn(*mut c_int) -> Code;
        nvrtcGetSupportedArchs: fn(*mut c_int) -> Code;
        nvrtcCreateProgram: fn(
            *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> Code;
        nvrtcCompileProgram: fn(Program, c_int, *const *const c_char) -> Code;
        nvrtcDestroyProgram: fn(*mut Program) -> Code;
        nvrtcGetProgramLogSize: fn(Program, *mut usize) -> Code;
        nvrtcGetProgramLog: fn(Program, *mut c_char) -> Code;
        nvrtcGetCUBINSize: fn(Program, *mut usize) -> Code;
        nvrtcGetCUBIN: fn(Program, *mut c_char) -> Code;
    }
}

/// NVRTC's code for a text that does not compile, which its log explains.
const COMPILATION: Code = 6;

/// NVRTC.
pub struct Compiler {
    functions: Functions,
    version: (u32, u32),
    /// 10 times the capabilities it compiles for.
    architectures: Vec<u32>,
}

impl Compiler {
    /// The newest NVRTC up to CUDA `major`.
    ///
    /// Errors: what is missing, and how to get it.
    pub fn open(search: &Search, major: u32) -> Result<Compiler, String> {
        let functions = Functions::of(search.open(Part::Nvrtc, major)?)?;
        let mut compiler = Compiler { functions, version: (0, 0), architectures: Vec::new() };
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the pointers are to live locals.
        unsafe {
            compiler.check("nvrtcVersion", (compiler.functions.nvrtcVersion)(&mut major, &mut minor))?;
            let counted = (compiler.functions.nvrtcGetNumSupportedArchs)(&mut count);
            compiler.check("nvrtcGetNumSupportedArchs", counted)?;
        }
        let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the array has as many elements as NVRTC said.
        let listed = unsafe { (compiler.functions.nvrtcGetSupportedArchs)(architectures.as_mut_ptr()) };
        compiler.check("nvrtcGetSupportedArchs", listed)?;
        compiler.version = (major.unsigned_abs(), minor.unsigned_abs());
        compiler.architectures = architectures.into_iter().map(c_int::unsigned_abs).collect();
        Ok(compiler)
    }

    /// `NVRTC 13.0`.
    pub fn title(&self) -> String {
        format!("NVRTC {}.{}", self.version.0, self.version.1)
    }

    /// The architecture to compile for: the device's, or the nearest older one, whose code the device runs.
    ///
    /// Errors: this NVRTC cannot compile for the device.
    pub fn architecture(&self, (major, minor): (u32, u32)) -> Result<String, String> {
        let device = 10 * major + minor;
        let runs = |known: &&u32| **known <= device && **known / 10 == major;
        match self.architectures.iter().filter(runs).max() {
            Some(nearest) => Ok(format!("sm_{nearest}")),
            None => {
                let too_new = self.architectures.iter().all(|&known| known > device);
                let other = if too_new {
                    format!("an older NVRTC can: set {PATH_VARIABLE} to its directory")
                } else {
                    "a newer NVRTC may".into()
                };
                Err(format!("{} cannot compile for compute capability {major}.{minor}; {other}", self.title()))
            }
        }
    }

    /// Machine code of all kernels in order, from `cache` or compiled in parallel.
    ///
    /// Errors: that of the first kernel that does not compile, see [`Compiler::program`].
    pub fn compile_all(
        &self,
        kernels: &[KernelText],
        architecture: &str,
        cache: &Cache,
    ) -> Result<Vec<Vec<u8>>, String> {
        let options = options(architecture);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(kernel) = kernels.get(i) else { return done };
                let parts = [self.title(), options.join(" "), kernel.entry.clone(), kernel.text.clone()];
                let key = format!("{}.cubin", key(parts.iter().map(String::as_str)));
                let code = cache
                    .get(&key)
                    .map_or_else(|| self.compile(kernel, &options).inspect(|code| cache.put(&key, code)), Ok);
                done.push((i, code));
            }
        };
        let workers = thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
        let mut done: Vec<(usize, Result<Vec<u8>, String>)> = thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            for other in others {
                done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        });
        done.sort_by_key(|(i, _)| *i);
        done.into_iter().map(|(_, code)| code).collect()
    }

    /// A compiled kernel.
    ///
    /// Errors: the compiler's log, which begins with the kernel's name and a line.
    fn program(&self, kernel: &KernelText, options: &[String]) -> Result<Owned<'_>, String> {
        let whole = |text: &str| CString::new(text).map_err(|_| format!("kernel {}: a zero in its text", kernel.entry));
        let (text, name) = (whole(&kernel.text)?, whole(&kernel.entry)?);
        let options = options.iter().map(|option| whole(option)).collect::<Result<Vec<_>, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = Owned { functions: &self.functions, program: ptr::null_mut() };
        // SAFETY: the texts end with zeros and live until the function returns; there are no headers.
        let made = unsafe {
            let (text, name) = (text.as_ptr(), name.as_ptr());
            (self.functions.nvrtcCreateProgram)(&mut program.program, text, name, 0, ptr::null(), ptr::null())
        };
        self.check("nvrtcCreateProgram", made)?;
        // SAFETY: the program was made, and the options live until the function returns.
        let compiled =
            unsafe { (self.functions.nvrtcCompileProgram)(program.program, options.len() as c_int, options.as_ptr()) };
        match compiled {
            0 => Ok(program),
            COMPILATION => Err(self.wrong(kernel, &self.log(&program))),
            code => {
                let said = self.check("nvrtcCompileProgram", code).err().unwrap_or_default();
                Err(format!("kernel {}: {said}: {}", kernel.entry, self.log(&program).trim()))
            }
        }
    }

    /// What the assembler says about a kernel for an architecture: registers, spills, stack.
    ///
    /// Errors: those of compiling.
    pub fn report(&self, kernel: &KernelText, architecture: &str) -> Result<String, String> {
        let options = [options(architecture), vec!["--ptxas-options=-v".into()]].concat();
        Ok(self.log(&self.program(kernel, &options)?))
    }

    /// The machine code of a kernel. Errors: those of [`Compiler::program`].
    fn compile(&self, kernel: &KernelText, options: &[String]) -> Result<Vec<u8>, String> {
        let program = self.program(kernel, options)?;
        let mut size = 0;
        // SAFETY: the program was compiled; the pointer is to a live local.
        self.check("nvrtcGetCUBINSize", unsafe { (self.functions.nvrtcGetCUBINSize)(program.program, &mut size) })?;
        let mut code = vec![0u8; size];
        // SAFETY: the buffer has as many bytes as NVRTC said.
        let got = unsafe { (self.functions.nvrtcGetCUBIN)(program.program, code.as_mut_ptr().cast()) };
        self.check("nvrtcGetCUBIN", got)?;
        Ok(code)
    }

    /// The first error in the log of a kernel that does not compile, with its line of the text.
    fn wrong(&self, kernel: &KernelText, log: &str) -> String {
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("error")).take(3).collect();
        let said = if errors.is_empty() { log.trim().to_owned() } else { errors.join("; ") };
        let line = errors.first().and_then(|error| error.split_once('(')?.1.split_once(')')?.0.parse::<usize>().ok());
        let text = line.and_then(|line| kernel.text.lines().nth(line.checked_sub(1)?));
        let text = text.map(|text| format!(" [{}]", text.trim())).unwrap_or_default();
        format!("{} does not compile kernel {}: {said}{text}", self.title(), kernel.entry)
    }

    fn log(&self, program: &Owned) -> String {
        let mut size = 0;
        // SAFETY: the program was made; the pointer is to a live local.
        if unsafe { (self.functions.nvrtcGetProgramLogSize)(program.program, &mut size) } != 0 || size == 0 {
            return String::new();
        }
        let mut log = vec![0u8; size];
        // SAFETY: the buffer has as many bytes as NVRTC said.
        let got = unsafe { (self.functions.nvrtcGetProgramLog)(program.program, log.as_mut_ptr().cast()) };
        if got == 0 { String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned() } else { String::new() }
    }

    fn check(&self, call: &str, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: NVRTC returns one of its own texts for every code.
        let text = unsafe { (self.functions.nvrtcGetErrorString)(code) };
        // SAFETY: the text ends with a zero and lives as long as the library.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        Err(format!("{call}: {}", text.unwrap_or_else(|| format!("error {code}"))))
    }
}

/// A name for what is made from these parts.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

fn options(architecture: &str) -> Vec<String> {
    vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into()]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An NVRTC program, destroyed on drop.
struct Owned<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was made and is destroyed once.
            unsafe { (self.functions.nvrtcDestroyProgram)(&mut self.program) };
        }
    }
}

/// Machine code and choices of algorithms on disk, shared by any number of processes. A file is the content and its
/// SHA-256. Nothing here fails: what cannot be cached is made again.
#[derive(Clone)]
pub struct Cache {
    dir: Option<PathBuf>,
}

/// Bytes of a SHA-256.
const CHECK: usize = 32;

impl Cache {
    /// The cache in `sparta/cuda` in the user's cache directory.
    pub fn of_user() -> Cache {
        Cache { dir: dirs::cache_dir().map(|dir| dir.join("sparta").join("cuda")) }
    }

    /// A cache in this directory; `None`: no cache.
    pub fn at(dir: Option<PathBuf>) -> Cache {
        Cache { dir }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(key))
    }

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(key)?).ok()?;
        let check = bytes.split_off(bytes.len().checked_sub(CHECK)?);
        (Sha256::digest(&bytes).as_slice() == check).then_some(bytes)
    }

    pub(crate) fn put(&self, key: &str, code: &[u8]) {
        if let Some(path) = self.path(key) {
            let _ = write(&path, code);
        }
    }
}

/// Writes to a temporary file and renames it, so that no process reads a partial file.
fn write(path: &Path, code: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    static WRITES: AtomicUsize = AtomicUsize::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let part = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = File::create_new(&part).and_then(|mut file| {
        file.write_all(code)?;
        file.write_all(&Sha256::digest(code))
    });
    let published = written.and_then(|()| fs::rename(&part, path));
    if published.is_err() {
        let _ = fs::remove_file(&part);
    }
    published
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(text: &str) -> KernelText {
        KernelText { text: text.into(), entry: "double_all".into(), shared: 0 }
    }

    const GOOD: &str = "extern \"C\" __global__ void double_all(float* x) {\n    x[threadIdx.x] *= 2.0f;\n}\n";

    /// NVRTC if the machine has it, which `SPARTA_NVRTC=required` demands.
    fn nvrtc() -> Option<Compiler> {
        match Compiler::open(&Search::of_environment(), 13) {
            Ok(compiler) => Some(compiler),
            Err(reason) => {
                assert!(std::env::var_os("SPARTA_NVRTC").is_none(), "{reason}");
                eprintln!("SKIPPED: {reason}");
                None
            }
        }
    }

    #[test]
    fn code_is_compiled_once() {
        let Some(compiler) = nvrtc() else { return };
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(dir.path().join("a/b")));
        let kernels = [kernel(GOOD), kernel(&GOOD.replace("2.0f", "3.0f"))];
        let first = compiler.compile_all(&kernels, "sm_80", &cache).unwrap();
        assert!(first.iter().all(|code| code.starts_with(b"\x7fELF")) && first[0] != first[1]);
        let mut files: Vec<PathBuf> =
            fs::read_dir(dir.path().join("a/b")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 2, "one file for each kernel, and none beside them: {files:?}");
        assert_eq!(compiler.compile_all(&kernels, "sm_80", &cache).unwrap(), first);
        // A truncated file, and one with a flipped bit.
        let whole = fs::read(&files[0]).unwrap();
        fs::write(&files[0], &whole[..whole.len() / 2]).unwrap();
        let mut flipped = fs::read(&files[1]).unwrap();
        flipped[100] ^= 1;
        fs::write(&files[1], flipped).unwrap();
        assert_eq!(compiler.compile_all(&kernels, "sm_80", &cache).unwrap(), first);
        assert_eq!(fs::read(&files[0]).unwrap(), whole);
        let nowhere = Cache::at(Some(files[0].join("below/a/file")));
        assert_eq!(compiler.compile_all(&kernels, "sm_80", &nowhere).unwrap(), first);
        assert_ne!(compiler.compile_all(&kernels, "sm_90", &cache).unwrap(), first, "another architecture");
    }

    #[test]
    fn compile_errors_name_kernel_and_line() {
        let Some(compiler) = nvrtc() else { return };
        let cache = Cache::at(None);
        let bad = [kernel(GOOD), kernel(&GOOD.replace("x[threadIdx.x]", "y[threadIdx.x]"))];
        let message = compiler.compile_all(&bad, "sm_80", &cache).unwrap_err();
        let said = "does not compile kernel double_all: double_all(2): error: identifier \"y\" is undefined";
        assert!(message.contains(said) && message.ends_with("[y[threadIdx.x] *= 2.0f;]"), "{message}");
        let message = compiler.compile_all(&[kernel(GOOD)], "sm_1", &cache).unwrap_err();
        assert!(message.contains("kernel double_all") && message.contains("gpu-architecture"), "{message}");
        assert!(compiler.compile_all(&[kernel("\0")], "sm_80", &cache).is_err());
    }

    #[test]
    fn a_device_runs_the_nearest_code_of_its_generation() {
        let Some(compiler) = nvrtc() else { return };
        assert_eq!(compiler.architecture((8, 0)).unwrap(), "sm_80");
        assert_eq!(compiler.architecture((9, 0)).unwrap(), "sm_90");
        assert_eq!(compiler.architecture((8, 5)).unwrap(), "sm_80");
        let (old, new) = (compiler.architecture((3, 5)), compiler.architecture((99, 0)));
        assert!(old.unwrap_err().contains("capability 3.5; an older NVRTC can: set SPARTA_CUDA_PATH to "));
        assert!(new.unwrap_err().ends_with("capability 99.0; a newer NVRTC may"));
    }
}
