//! Opens shared libraries.

use super::binary;
use super::library::{Entry, Functions, enter};
use super::running;
use crate::files;
use crate::hash::hash_open;
use same_file::Handle;
use sparta_plugin::abi::ENTRY;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Whether this is a library for this machine, with a plugin's entry point.
///
/// Errors: what it is instead.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    binary::check(bytes)
}

/// Opens a library and returns its interfaces. `file` is the file at `path` that was checked: on Linux just this one is
/// loaded, even if another file has replaced it.
pub fn open(path: &Path, file: File) -> Result<Vec<Functions>, String> {
    let path = canonical(path)?;
    let descriptor = descriptor_path(&file).filter(|descriptor| descriptor.exists());
    let file = Handle::from_file(file).map_err(|e| format!("cannot be read: {e}"))?;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, interfaces)) = opened.iter().find(|(other, _)| *other == file) {
        return Ok(interfaces.clone());
    }
    let _running = running::Call::begin(|| format!("{}: loading it", path.display()), false);
    // SAFETY: opening runs the library's initialisers. The user, the configuration or the installation named the file,
    // and `binary::check` has seen that it is a whole library for this machine with our entry point.
    let library =
        unsafe { load(descriptor.as_ref().unwrap_or(&path)) }.map_err(|e| match std::error::Error::source(&e) {
            Some(loader) => {
                let loader = loader.to_string();
                let name = descriptor.as_ref().map_or(String::new(), |path| path.display().to_string());
                match name.is_empty() {
                    true => format!("cannot be opened: {loader}"),
                    false => format!("cannot be opened: {}", loader.replace(&name, &path.display().to_string())),
                }
            }
            None => format!("cannot be opened: {e}"),
        })?;
    // SAFETY: a library that exports this name promises this type, see `sparta_plugin.h`.
    let entry: Entry = *unsafe { library.get::<Entry>(ENTRY.as_bytes()) }.map_err(|e| format!("not a plugin: {e}"))?;
    // Never unloaded: its tables, threads and thread-locals may be used as long as the process lives.
    std::mem::forget(library);
    // SAFETY: it is the entry point of a library that stays loaded.
    let interfaces = unsafe { enter(entry) };
    // The loader knows libraries by their names, so this descriptor's must not become that of another file.
    opened.push((file, interfaces.clone().unwrap_or_default()));
    interfaces
}

/// The files of the libraries that are loaded, never closed, and their interfaces.
static OPENED: Mutex<Vec<(Handle, Vec<Functions>)>> = Mutex::new(Vec::new());

/// SHA-256 of a library that is loaded, from the file that was loaded.
///
/// Errors: the file at the path has been replaced.
pub fn hash_of(path: &Path) -> crate::Result<String> {
    let now = files::open_on_disk(path).and_then(Handle::from_file).map_err(crate::Error::io(path))?;
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    match opened.iter().find(|(file, _)| *file == now) {
        Some((file, _)) => hash_open(path, file.as_file()),
        None => {
            Err(crate::Error::Plugin(format!("{}: it was replaced after it was loaded; try again", path.display())))
        }
    }
}

/// The path of an open file.
#[cfg(target_os = "linux")]
fn descriptor_path(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
}

#[cfg(not(target_os = "linux"))]
fn descriptor_path(_file: &File) -> Option<PathBuf> {
    None
}

/// All symbols are resolved now, so that a missing one is an error here rather than in the middle of a run.
///
/// # Safety
/// As [`libloading::Library::new`].
unsafe fn load(path: &Path) -> Result<libloading::Library, libloading::Error> {
    #[cfg(unix)]
    {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: the caller vouches for it.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
    }
    #[cfg(not(unix))]
    {
        // SAFETY: the caller vouches for it.
        unsafe { libloading::Library::new(path) }
    }
}

/// An absolute path, so that the dynamic loader searches nowhere else.
pub fn canonical(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize().map_err(|e| format!("cannot be read: {e}"))
}
