//! Which MPI library a process uses: that of its launcher.

use crate::api::{Functions, Names};
use crate::engine;
use crate::launch::uses_open_mpi;
use libloading::Library;
use sparta_plugin::Error;
use sparta_plugin::communicator::{Communicator, Launch};
use std::path::{Path, PathBuf};

/// Names a library to use instead of searching for one.
const VARIABLE: &str = "SPARTA_MPI_LIBRARY";

/// Names of libraries: of the standard ABI, of MPICH and its derivatives, and of Open MPI.
const STANDARD: [&str; 2] = ["libmpi_abi.so.1", "libmpi_abi.so.0"];
const MPICH: [&str; 2] = ["libmpi.so.12", "libmpich.so.12"];
const OPEN_MPI: [&str; 1] = ["libmpi.so.40"];

/// Opens the library of the launcher, and connects to the other processes.
///
/// Errors: no library, or one that sees a different number of processes than the launcher started.
pub fn join(launch: &Launch) -> Result<Box<dyn Communicator>, Error> {
    let (path, library) = find(launch)?;
    // MPI keeps threads and memory until the process ends.
    let library: &'static Library = Box::leak(Box::new(library));
    let named = |error: Error| Error(format!("{}: {}", path.display(), error.0));
    let standard = path.file_name().is_some_and(|name| name.to_string_lossy().contains("mpi_abi"));
    // SAFETY: the name of the library, or its symbols, tell which handles it has; it is never closed.
    unsafe {
        if standard {
            engine::join(launch, Functions::of(library).map_err(named)?, Names::standard(), &path)
        } else if let Some(names) = Names::open_mpi(library) {
            engine::join(launch, Functions::of(library).map_err(named)?, names, &path)
        } else {
            engine::join(launch, Functions::of(library).map_err(named)?, Names::mpich(), &path)
        }
    }
}

fn find(launch: &Launch) -> Result<(PathBuf, Library), Error> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        let opened = open(&path).map_err(|why| Error(format!("{VARIABLE}: {why}")))?;
        return Ok((path, opened));
    }
    let names: Vec<&str> = match uses_open_mpi(launch) {
        true => OPEN_MPI.iter().chain(&STANDARD).copied().collect(),
        false => STANDARD.iter().chain(&MPICH).chain(&OPEN_MPI).copied().collect(),
    };
    let beside = beside_launcher();
    let beside =
        beside.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name))).filter(|path| path.is_file());
    let mut refused = Vec::new();
    for path in beside.chain(names.iter().map(PathBuf::from)) {
        match open(&path) {
            Ok(library) => return Ok((path, library)),
            Err(why) => refused.push(why),
        }
    }
    Err(Error(format!(
        "{} has started {} processes, but no MPI library was found to connect them: looked for {} beside the launcher \
         and in the system's library directories ({}); name one with {VARIABLE}",
        launch.launcher,
        launch.size,
        names.join(", "),
        refused.join("; ")
    )))
}

/// Makes all symbols visible to the modules that Open MPI loads itself.
#[cfg(unix)]
fn open(path: &Path) -> Result<Library, String> {
    use libloading::os::unix::{self, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: opening runs the library's initialisers; the user's launcher or the system has named it.
    let opened = unsafe { unix::Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    opened.map(Into::into).map_err(|e| std::error::Error::source(&e).map_or(e.to_string(), ToString::to_string))
}

#[cfg(not(unix))]
fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: opening runs the library's initialisers; the user has named it.
    unsafe { Library::new(path) }.map_err(|e| e.to_string())
}

/// How many processes there may be between the launcher and this one: shells and scripts.
const ANCESTORS: usize = 6;

/// The `lib` directories beside those of the executables of this process's ancestors: an MPI launcher that is not
/// installed where the loader looks has its library there.
fn beside_launcher() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut process = "self".to_owned();
    for _ in 0..ANCESTORS {
        let Some(parent) = parent(&process) else { break };
        let executable = std::fs::read_link(format!("/proc/{parent}/exe")).unwrap_or_default();
        let root = executable.parent().and_then(Path::parent);
        found.extend(root.map(|root| root.join("lib")).filter(|dir| !found.contains(dir)));
        process = parent;
    }
    found
}

fn parent(process: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(line.trim().to_owned()).filter(|parent| parent != "0")
}
