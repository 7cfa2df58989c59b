//! Plugins in the user's directory: libraries with manifests.
//!
//! The name of an installed library ends in a prefix of its hash, so that a different build is a different file. The
//! manifest is written first and the library second: at every moment each library has its manifest.

use super::discover::{DiscoverOptions, Origin};
use super::manifest::{Manifest, target};
use super::{PluginKind, PluginSet, State};
use crate::hash::hash_file;
use crate::weights::atomic_write;
use crate::{Error, Result, files};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// An installed plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Installed {
    pub library: PathBuf,
    pub manifest: Manifest,
}

/// Copies a library into a directory of plugins, with a manifest, replacing one of the same kind and name.
///
/// Errors: a library that would not be loaded, or has several interfaces; a directory that cannot be written.
pub fn install(library: &Path, directory: &Path) -> Result<Installed> {
    files::create_dirs(directory).map_err(Error::io(directory))?;
    // The copy is inspected and installed, whatever happens to the original.
    let copy = directory.join(format!(".installing-{}", std::process::id()));
    let outcome = copy_into(library, &copy).and_then(|()| publish(library, &copy, directory));
    if outcome.is_err() {
        files::remove(&copy).map_err(Error::io(&copy))?;
    }
    outcome
}

fn copy_into(library: &Path, copy: &Path) -> Result<()> {
    let mut from = files::open(library).map_err(Error::io(library))?;
    let mut to = fs::File::create(copy).map_err(Error::io(copy))?;
    std::io::copy(&mut from, &mut to).map_err(Error::io(copy))?;
    Ok(())
}

fn publish(library: &Path, copy: &Path, directory: &Path) -> Result<Installed> {
    let (kind, name) = identify(copy).map_err(|why| Error::Plugin(format!("{}: {why}", library.display())))?;
    let sha256 = hash_file(copy)?;
    let before = installed(directory)?;
    let file = format!("{DLL_PREFIX}sparta_{kind}_{name}-{}{DLL_SUFFIX}", &sha256[..12]);
    let library = directory.join(file);
    let manifest = Manifest { name, kind, abi: kind.interface().to_owned(), target: target(), sha256 };
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::Plugin(e.to_string()))?;
    let path = Manifest::path(&library);
    atomic_write(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))?;
    files::publish(copy, &library).map_err(Error::io(&library))?;
    let same = |other: &&Installed| other.manifest.name == manifest.name && other.manifest.kind == kind;
    before.iter().filter(same).filter(|other| other.library != library).try_for_each(delete)?;
    Ok(Installed { library, manifest })
}

/// The kind and the name of a library's one plugin.
fn identify(library: &Path) -> std::result::Result<(PluginKind, String), String> {
    let options = DiscoverOptions { explicit: vec![library.to_owned()], ..DiscoverOptions::default() };
    let set = PluginSet::discover(&options);
    let refused = set.report().iter().find_map(|found| match &found.state {
        State::Refused { reason } => Some(reason.clone()),
        _ => None,
    });
    match (refused, set.report()) {
        (Some(reason), _) => Err(reason),
        (None, [found]) => match found.kind {
            Some(kind) => Ok((kind, found.name.clone())),
            None => Err("it has no interface of a known kind".into()),
        },
        (None, several) => Err(format!(
            "it has {} interfaces, and a manifest describes one; name the library with --plugin or {} instead",
            several.len(),
            Origin::PathVariable
        )),
    }
}

/// Removes the plugin of this name, and of this kind if one is given.
///
/// Errors: no such plugin, or several kinds of it; files that cannot be removed.
pub fn remove(name: &str, kind: Option<PluginKind>, directory: &Path) -> Result<Vec<Installed>> {
    let all = installed(directory)?;
    let meant = |one: &&Installed| one.manifest.name == name && kind.is_none_or(|kind| kind == one.manifest.kind);
    let found: Vec<Installed> = all.iter().filter(meant).cloned().collect();
    let Some(first) = found.first() else {
        let names: Vec<String> = all.iter().map(|one| format!("{} {}", one.manifest.kind, one.manifest.name)).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let kind = kind.map_or("plugin".to_owned(), |kind| format!("{kind} plugin"));
        return Err(Error::Plugin(format!(
            "{}: no {kind} `{name}` is installed; there are: {there}",
            directory.display()
        )));
    };
    if found.iter().any(|one| one.manifest.kind != first.manifest.kind) {
        return Err(Error::Usage(format!("`{name}` is installed as plugins of several kinds; say which with --kind")));
    }
    found.iter().try_for_each(delete)?;
    Ok(found)
}

/// What is installed in a directory: manifests that have their library beside them.
fn installed(directory: &Path) -> Result<Vec<Installed>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).map_err(Error::io(directory))?;
    let mut libraries: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    libraries.retain(|path| path.to_str().is_some_and(|name| name.ends_with(DLL_SUFFIX)));
    libraries.sort();
    // Unreadable manifests are skipped here; `plugin list` reports them.
    let manifest = |library: PathBuf| Some(Installed { manifest: Manifest::read(&library).ok()??, library });
    Ok(libraries.into_iter().filter_map(manifest).collect())
}

/// Deletes the library first, as a manifest alone has no effect.
fn delete(one: &Installed) -> Result<()> {
    let manifest = Manifest::path(&one.library);
    files::remove(&one.library).map_err(Error::io(&one.library))?;
    files::remove(&manifest).map_err(Error::io(&manifest))
}
