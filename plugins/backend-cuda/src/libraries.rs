//! Finds NVIDIA's libraries: the driver's libcuda, NVRTC, which compiles kernels, and cuBLASLt, which multiplies. Only
//! the first comes with the driver; the others come with the CUDA toolkit, with PyTorch, or as separate packages.

use libloading::Library;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment variable that names directories to look in first.
pub const PATH_VARIABLE: &str = "SPARTA_CUDA_PATH";

/// A library of NVIDIA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Driver,
    Nvrtc,
    CublasLt,
}

impl Part {
    /// The start of its file names, before a version.
    fn stem(self) -> &'static str {
        match (self, cfg!(windows)) {
            (Part::Driver, false) => "libcuda.so",
            (Part::Driver, true) => "nvcuda.dll",
            (Part::Nvrtc, false) => "libnvrtc.so",
            (Part::Nvrtc, true) => "nvrtc64_",
            (Part::CublasLt, false) => "libcublasLt.so",
            (Part::CublasLt, true) => "cublasLt64_",
        }
    }

    /// The name under which the system's loader finds the version for CUDA `major`.
    fn name(self, major: u32) -> String {
        match (self, cfg!(windows)) {
            (Part::Driver, false) => "libcuda.so.1".into(),
            (Part::Driver, true) => "nvcuda.dll".into(),
            // CUDA 11 froze NVRTC's names at 11.2.
            (Part::Nvrtc, false) if major == 11 => "libnvrtc.so.11.2".into(),
            (Part::Nvrtc, true) if major == 11 => "nvrtc64_112_0.dll".into(),
            (Part::Nvrtc, true) => format!("nvrtc64_{major}0_0.dll"),
            (Part::CublasLt, true) => format!("cublasLt64_{major}.dll"),
            _ => format!("{}.{major}", self.stem()),
        }
    }

    /// Whether a file of this name is this library, for CUDA `major` if the name includes it.
    fn is(self, file: &str, major: u32) -> bool {
        let plain = without_hash(file);
        let Some(version) = plain.as_deref().unwrap_or(file).strip_prefix(self.stem()) else { return false };
        match self {
            Part::Driver => matches!(version, "" | ".1"),
            Part::Nvrtc if cfg!(windows) => {
                version.strip_suffix("_0.dll").is_some_and(|digits| digits.starts_with(&major.to_string()))
            }
            Part::CublasLt if cfg!(windows) => version == format!("{major}.dll"),
            Part::Nvrtc | Part::CublasLt => {
                let version = version.trim_start_matches('.');
                version.is_empty() || version.split('.').next() == Some(&major.to_string())
            }
        }
    }

    /// The Python packages to install if it is missing: cuBLASLt is needed as well as NVRTC.
    fn packages(self, major: u32) -> String {
        // From 13 on, a package's version begins with that of CUDA, and its name has none.
        let of = if major < 13 { format!("-cu{major}") } else { format!("~={major}.0") };
        let nvrtc = if self == Part::Nvrtc { format!("nvidia-cuda-nvrtc{of} ") } else { String::new() };
        format!("{nvrtc}nvidia-cublas{of}")
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Driver => "the CUDA driver",
            Part::Nvrtc => "NVRTC",
            Part::CublasLt => "cuBLASLt",
        })
    }
}

/// `libnvrtc.so.11.2` for `libnvrtc-672ee683.so.11.2`: wheels add a part of its hash to the name of a library that they
/// contain.
fn without_hash(file: &str) -> Option<String> {
    let (name, rest) = file.split_once('-')?;
    let (hash, version) = rest.split_once(".so")?;
    let is_hash = hash.len() == 8 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hash.then(|| format!("{name}.so{version}"))
}

/// The directories to look in, in order.
#[derive(Clone, Debug)]
pub struct Search {
    /// Directories searched before the system's loader.
    first: Vec<PathBuf>,
    /// Directories searched after the system's loader.
    then: Vec<PathBuf>,
    /// Directories that the user has named, but that are not there.
    absent: Vec<PathBuf>,
}

impl Search {
    /// `SPARTA_CUDA_PATH`, the system's loader, `CUDA_HOME`, `CUDA_PATH`, `/usr/local/cuda`, then the packages of the
    /// Python that is active (`VIRTUAL_ENV`, `CONDA_PREFIX`, `python3` on `PATH`) or the user's own.
    pub fn of_environment() -> Search {
        Search::of(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    /// Searches one directory.
    #[cfg(test)]
    pub fn within(dir: &Path) -> Search {
        Search { first: vec![dir.to_path_buf()], then: Vec::new(), absent: Vec::new() }
    }

    fn of(variable: impl Fn(&str) -> Option<PathBuf>) -> Search {
        let listed = variable(PATH_VARIABLE).iter().flat_map(env::split_paths).collect::<Vec<_>>();
        let mut first: Vec<PathBuf> = listed.iter().flat_map(|dir| toolkit(dir)).collect();
        // May also be a directory of packages or a virtual environment.
        first.extend(listed.iter().flat_map(|dir| [packages(dir), environment(dir)].concat()));
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| variable(name));
        let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]);
        let mut then: Vec<PathBuf> = toolkits.flat_map(|dir| toolkit(&dir)).collect();
        // Where containers and WSL mount the driver.
        then.extend(["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"].map(PathBuf::from));
        let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| variable(name));
        let python = variable("PATH").and_then(|path| python(path.as_os_str()));
        let home = variable("HOME").map(|home| home.join(".local"));
        for prefix in active.chain(python.into_iter().flatten()).chain(home) {
            // A conda environment has the toolkit's libraries itself.
            then.push(prefix.join("lib"));
            then.extend(environment(&prefix));
        }
        let absent = listed.into_iter().filter(|dir| !dir.is_dir()).collect();
        Search { first, then, absent }
    }

    /// Opens the library for the newest installed major version of CUDA up to `newest`; any that `SPARTA_CUDA_PATH`
    /// leads to come first. The driver has one name for all versions.
    ///
    /// Errors: what is missing and how to get it; what cannot be loaded, and why.
    pub fn open(&self, part: Part, newest: u32) -> Result<Library, String> {
        let oldest = if part == Part::Driver { newest } else { OLDEST };
        let majors = || (oldest..=newest).rev();
        let first = majors().flat_map(|major| self.first.iter().flat_map(move |dir| files(dir, part, major)));
        let then = majors().flat_map(|major| {
            let later = self.then.iter().flat_map(move |dir| files(dir, part, major));
            [PathBuf::from(part.name(major))].into_iter().chain(later)
        });
        let mut broken = None;
        for path in first.chain(then) {
            let said = match open(&path, part) {
                Ok(library) => return Ok(library),
                Err(error) => loader_says(&error),
            };
            if !is_absent(&path, &said) {
                broken = broken.or_else(|| Some(format!("{} cannot be loaded: {said}", path.display())));
            }
        }
        Err(broken.unwrap_or_else(|| {
            let absent = self.absent.iter();
            let absent =
                absent.map(|dir| format!("; {PATH_VARIABLE} names {}, which is not a directory", dir.display()));
            missing(part, newest) + &absent.collect::<String>()
        }))
    }
}

/// What the loader says about a library or a function.
pub(crate) fn loader_says(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Whether the loader did not find a name, which is not an error. On Linux it reports a different name if it found the
/// library, but not another one that this needs.
fn is_absent(path: &Path, said: &str) -> bool {
    let is_name = path.file_name() == Some(path.as_os_str());
    let not_found = said.contains(&format!("{}: ", path.display())) && said.ends_with("No such file or directory");
    is_name && (not_found || !cfg!(target_os = "linux"))
}

/// The oldest CUDA whose libraries are used.
const OLDEST: u32 = 11;

fn missing(part: Part, major: u32) -> String {
    let name = part.name(major);
    match part {
        Part::Driver => format!(
            "no CUDA driver is installed: {name}, which comes with NVIDIA's driver, is not among the system's libraries, \
             nor where {PATH_VARIABLE} points"
        ),
        Part::Nvrtc | Part::CublasLt => format!(
            "{part} is missing ({name}): `pip install {}` in the active Python environment, install the CUDA {major} \
             toolkit, or set {PATH_VARIABLE} to the directory that has it",
            part.packages(major)
        ),
    }
}

fn open(path: &Path, part: Part) -> Result<Library, libloading::Error> {
    // NVRTC loads its second library by name alone, and packages before 13.5 do not say where that is.
    if let Some(dir) = path.parent().filter(|_| part == Part::Nvrtc) {
        for builtins in entries(dir).iter().filter(|name| name.contains("nvrtc-builtins")) {
            // SAFETY: loading NVIDIA's library runs its initialisers only.
            if let Ok(library) = unsafe { Library::new(dir.join(builtins)) } {
                std::mem::forget(library);
            }
        }
    }
    // SAFETY: as above.
    unsafe { Library::new(path) }
}

/// The files in a directory that are this library, the shortest name first, since it links to the others.
fn files(dir: &Path, part: Part, major: u32) -> Vec<PathBuf> {
    let mut names: Vec<String> = entries(dir).into_iter().filter(|name| part.is(name, major)).collect();
    // A name without a version may be any version: what it links to says which, and names with one are preferred.
    names.retain(|name| part == Part::Driver || name != part.stem() || part.is(&linked(&dir.join(name)), major));
    names.sort_by_key(|name| (name == part.stem(), name.len(), name.clone()));
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// The name of the file that a link leads to, or its own.
fn linked(path: &Path) -> String {
    let file = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn entries(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Where a toolkit in `dir` has its libraries, which may be `dir` itself.
fn toolkit(dir: &Path) -> Vec<PathBuf> {
    let below = ["", "lib64", "lib", "bin", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin/x64"];
    below.iter().map(|name| dir.join(name)).collect()
}

/// Where the Python packages of an environment (`VENV`, `/usr`) have their libraries.
fn environment(prefix: &Path) -> Vec<PathBuf> {
    let lib = prefix.join("lib");
    let versions = entries(&lib).into_iter().filter(|name| name.starts_with("python3")).map(|name| lib.join(name));
    let mut all: Vec<PathBuf> = versions.collect();
    // Newest first, then the name used on Windows.
    all.sort_by_key(|dir| std::cmp::Reverse(dir.as_os_str().len()));
    all.push(prefix.join("Lib"));
    let sites = all.iter().flat_map(|dir| ["site-packages", "dist-packages"].map(|name| dir.join(name)));
    sites.flat_map(|site| packages(&site)).collect()
}

/// Where the packages in a `site-packages` have their libraries: `nvidia/*/lib` (on Windows `bin`), and PyTorch's.
fn packages(site: &Path) -> Vec<PathBuf> {
    let nvidia = site.join("nvidia");
    let mut names = entries(&nvidia);
    // cu13 has all of CUDA 13; older packages have separate directories.
    names.sort();
    let mut dirs: Vec<PathBuf> =
        names.iter().flat_map(|name| ["lib", "bin", "bin/x86_64"].map(|kind| nvidia.join(name).join(kind))).collect();
    dirs.push(site.join("torch/lib"));
    dirs.retain(|dir| dir.is_dir());
    dirs
}

/// The prefixes of the `python3` that a shell would start: that of the name on `PATH`, which may be in a virtual
/// environment, and that of what it links to. Python itself is not started.
fn python(path: &OsStr) -> Option<Vec<PathBuf>> {
    let names = if cfg!(windows) { ["python.exe", "python3.exe"] } else { ["python3", "python"] };
    let program =
        names.iter().find_map(|name| env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_file()))?;
    let linked = program.canonicalize().ok();
    let prefix = |program: &Path| Some(program.parent()?.parent()?.to_path_buf());
    Some([prefix(&program), linked.as_deref().and_then(prefix)].into_iter().flatten().collect())
}

/// Functions of a library, looked up once. The library stays loaded, since NVIDIA's libraries run threads.
macro_rules! functions {
    ($(#[$doc:meta])* $visible:vis struct $table:ident { $($name:ident: fn($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        $visible struct $table {
            $($visible $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $table {
            /// Errors: a function is missing from the library.
            fn of(library: libloading::Library) -> Result<Self, String> {
                let table = $table {
                    $($name: {
                        let name = concat!(stringify!($name), "\0").as_bytes();
                        // SAFETY: the type is the one that NVIDIA's header declares for the function of this name.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> $result>(name) };
                        *found.map_err(|e| {
                            format!("a CUDA library lacks a function: {}", $crate::libraries::loader_says(&e))
                        })?
                    },)*
                };
                std::mem::forget(library);
                Ok(table)
            }
        }
    };
}
pub(crate) use functions;

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A directory with empty files.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    /// The existing places where the library is looked for, as paths below `dir`.
    fn found(dir: &Path, variables: &[(&str, &str)], part: Part, major: u32) -> Vec<String> {
        let search = Search::of(|name| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some(PathBuf::from(value.replace("DIR", dir.to_str().unwrap())))
        });
        let dirs = search.first.iter().chain(&search.then);
        let all = dirs.flat_map(|dir| files(dir, part, major));
        let below = all.filter_map(|path| Some(path.strip_prefix(dir).ok()?.to_str().unwrap().to_owned()));
        let mut once = Vec::new();
        below.for_each(|path| {
            if !once.contains(&path) {
                once.push(path);
            }
        });
        once
    }

    #[test]
    fn places_are_searched_in_order() {
        let dir = tree(&[
            "own/libnvrtc.so.13",
            "toolkit/lib64/libnvrtc.so.13.0.88",
            "toolkit/lib64/libnvrtc.so.13",
            "toolkit/lib64/libnvrtc.so",
            "toolkit/lib64/libnvrtc.so.12",
            "toolkit/lib64/libnvrtc-builtins.so.13.0",
            "toolkit/lib64/libnvrtc.alt.so.13",
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "path/bin/python3",
            "path/lib/python3.11/site-packages/torch/lib/libnvrtc.so.13",
            "path/lib/python3.11/site-packages/torch/lib/libnvrtc-672ee683.so.11.2",
            "path/lib/python3.11/site-packages/torch/lib/libnvrtc-builtins.so.11.8",
            "home/.local/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ]);
        let variables = [
            ("HOME", "DIR/home"),
            ("PATH", "DIR/nothing:DIR/path/bin"),
            ("VIRTUAL_ENV", "DIR/venv"),
            ("CUDA_HOME", "DIR/toolkit"),
            (PATH_VARIABLE, "DIR/other:DIR/own"),
        ];
        let wanted = [
            "own/libnvrtc.so.13",
            "toolkit/lib64/libnvrtc.so.13",
            "toolkit/lib64/libnvrtc.so.13.0.88",
            "toolkit/lib64/libnvrtc.so",
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "path/lib/python3.11/site-packages/torch/lib/libnvrtc.so.13",
        ];
        assert_eq!(found(dir.path(), &variables, Part::Nvrtc, 13), wanted);
        let of_12 = found(dir.path(), &variables, Part::Nvrtc, 12);
        assert_eq!(of_12[0], "toolkit/lib64/libnvrtc.so.12");
        assert!(of_12[2].ends_with("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"), "{of_12:?}");
        let of_11 = found(dir.path(), &variables, Part::Nvrtc, 11);
        assert_eq!(of_11[1..], ["path/lib/python3.11/site-packages/torch/lib/libnvrtc-672ee683.so.11.2"]);
        assert!(found(dir.path(), &variables, Part::CublasLt, 13).is_empty());
    }

    #[test]
    fn the_variable_takes_toolkits_environments_and_packages() {
        let library = "nvidia/cu13/lib/libcublasLt.so.13";
        let environment = format!("venv/lib/python3.12/site-packages/{library}");
        let dir = tree(&[&environment, &format!("packages/{library}"), "toolkit/lib64/libcublasLt.so.13"]);
        for (value, path) in [
            ("DIR/venv", environment.as_str()),
            ("DIR/packages", &format!("packages/{library}")),
            ("DIR/toolkit", "toolkit/lib64/libcublasLt.so.13"),
            ("DIR/toolkit/lib64", "toolkit/lib64/libcublasLt.so.13"),
        ] {
            assert_eq!(found(dir.path(), &[(PATH_VARIABLE, value)], Part::CublasLt, 13), [path], "{value}");
        }
    }

    #[test]
    fn a_link_without_a_version_has_that_of_its_file() {
        let dir = tree(&["lib/libnvrtc.so.13.0.88"]);
        std::os::unix::fs::symlink("libnvrtc.so.13.0.88", dir.path().join("lib/libnvrtc.so")).unwrap();
        let of = |major| found(dir.path(), &[("CUDA_HOME", "DIR")], Part::Nvrtc, major);
        assert_eq!(of(13), ["lib/libnvrtc.so.13.0.88", "lib/libnvrtc.so"]);
        assert!(of(12).is_empty());
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let dir = tree(&["libnvrtc.so.13"]);
        let search = Search::within(dir.path());
        let Err(message) = search.open(Part::Nvrtc, 13) else { return };
        assert!(message.contains("libnvrtc.so.13 cannot be loaded: "), "{message}");
        assert!(!message.ends_with("dlopen failed"), "the loader says why: {message}");
        let Err(message) = search.open(Part::CublasLt, 12) else { return };
        assert!(message.contains("`pip install nvidia-cublas-cu12`"), "{message}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tree(&["here/file"]);
        let [here, nowhere] = ["here", "nowhere"].map(|name| dir.path().join(name));
        let named = env::join_paths([&here, &nowhere]).unwrap();
        let search = Search::of(|name| (name == PATH_VARIABLE).then(|| named.clone().into()));
        let Err(message) = search.open(Part::CublasLt, 12) else { return };
        let said = format!("; SPARTA_CUDA_PATH names {}, which is not a directory", nowhere.display());
        assert!(message.contains("cuBLASLt is missing") && message.ends_with(&said), "{message}");
    }

    #[test]
    fn only_a_name_that_is_not_found_is_absent() {
        let (name, file) = (Path::new("libcuda.so.1"), Path::new("/lib/libcuda.so.1"));
        let in_vain = "libcuda.so.1: cannot open shared object file: No such file or directory";
        let lacking = "libnvidia-ml.so.1: cannot open shared object file: No such file or directory";
        let absent = [(name, in_vain), (name, lacking), (file, in_vain)].map(|(path, said)| is_absent(path, said));
        assert_eq!(absent, [true, !cfg!(target_os = "linux"), false]);
    }
}
