//! Where plugin libraries are searched for: never in the current directory, and never at a path that a model or a data
//! set names.

use super::PluginKind;
use serde::Serialize;
use std::collections::HashSet;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The environment variable for more places, separated as in `PATH`.
pub const PATH_VARIABLE: &str = "SPARTA_PLUGIN_PATH";

/// Places in the order of the search; the first plugin of a name wins. A place is a library or a directory of
/// libraries.
#[derive(Clone, Debug, Default)]
pub struct DiscoverOptions {
    /// Kinds that are not needed: libraries known to be of these kinds are not opened.
    pub unneeded: Vec<PluginKind>,
    /// `--plugin`.
    pub explicit: Vec<PathBuf>,
    /// Libraries used by the run that is being read.
    pub run: Vec<PathBuf>,
    /// From the configuration file.
    pub configured: Vec<PathBuf>,
    /// The value of [`PATH_VARIABLE`].
    pub path_variable: Option<OsString>,
    /// The per-user plugin directory.
    pub user: Option<PathBuf>,
    /// The executable's directory, or where a build puts plugins.
    pub beside: Vec<PathBuf>,
    /// Whether a plugin may differ from the one that a run used.
    pub allow_other: bool,
}

impl DiscoverOptions {
    /// The places of this process: its environment, user and executable.
    pub fn standard(explicit: Vec<PathBuf>, configured: Vec<PathBuf>) -> Self {
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        DiscoverOptions {
            unneeded: Vec::new(),
            explicit,
            run: Vec::new(),
            configured,
            path_variable: std::env::var_os(PATH_VARIABLE),
            user: user_directory(),
            beside: beside.into_iter().collect(),
            allow_other: false,
        }
    }
}

/// The per-user directory of plugins; `None` if the system has no directory for user data.
pub fn user_directory() -> Option<PathBuf> {
    dirs::data_dir().map(|dir| dir.join("sparta").join("plugins"))
}

/// Where a plugin comes from: the kind of place where its library was found, or the executable itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Explicit,
    Run,
    Configuration,
    PathVariable,
    User,
    BesideExecutable,
    Linked,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Explicit => "--plugin",
            Origin::Run => "the run that used it",
            Origin::Configuration => "configuration",
            Origin::PathVariable => PATH_VARIABLE,
            Origin::User => "user directory",
            Origin::BesideExecutable => "beside the executable",
            Origin::Linked => "linked in",
        })
    }
}

impl Origin {
    /// Whether a library may be opened without a manifest: because the user named the place for this command, a run has
    /// its hash, or a build made it.
    pub fn trusts_without_manifest(self) -> bool {
        matches!(self, Origin::Explicit | Origin::Run | Origin::PathVariable | Origin::BesideExecutable)
    }
}

/// A library to inspect, or a place that could not be searched.
pub struct Candidate {
    pub path: PathBuf,
    pub origin: Origin,
    pub problem: Option<String>,
}

/// All libraries at the places, in order, without duplicates.
pub fn candidates(options: &DiscoverOptions) -> Vec<Candidate> {
    let variable: Vec<PathBuf> = options.path_variable.iter().flat_map(std::env::split_paths).collect();
    let places = [
        (Origin::Explicit, options.explicit.as_slice()),
        (Origin::Run, &options.run),
        (Origin::Configuration, &options.configured),
        (Origin::PathVariable, &variable),
        (Origin::User, options.user.as_slice()),
        (Origin::BesideExecutable, &options.beside),
    ];
    let mut found = Vec::new();
    for (origin, paths) in places {
        // An empty entry, as in `PATH=a::b`, would mean the current directory.
        for path in paths.iter().filter(|path| !path.as_os_str().is_empty()) {
            search(path, origin, &mut found);
        }
    }
    let identity = |found: &Candidate| found.path.canonicalize().unwrap_or_else(|_| found.path.clone());
    let beside = found.iter().filter(|candidate| candidate.origin == Origin::BesideExecutable);
    let beside: HashSet<PathBuf> = beside.map(identity).collect();
    let mut seen = HashSet::new();
    found.retain_mut(|candidate| {
        let identity = identity(candidate);
        // The library that a run used may be the one that comes with the program.
        if candidate.origin == Origin::Run && beside.contains(&identity) {
            candidate.origin = Origin::BesideExecutable;
        }
        seen.insert(identity)
    });
    found
}

fn search(place: &Path, origin: Origin, found: &mut Vec<Candidate>) {
    let mut add = |path: &Path, problem: Option<String>| {
        found.push(Candidate { path: path.to_owned(), origin, problem });
    };
    if origin != Origin::Explicit && place.is_relative() {
        return add(place, Some("a relative path depends on the current directory; give an absolute one".into()));
    }
    if !place.exists() {
        if origin != Origin::User {
            add(place, Some("there is no such file or directory".into()));
        }
        return;
    }
    if !place.is_dir() {
        return add(place, None);
    }
    let entries = match std::fs::read_dir(place) {
        Ok(entries) => entries,
        Err(e) => return add(place, Some(format!("cannot be listed: {e}"))),
    };
    let mut libraries: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_library(path) && (origin != Origin::BesideExecutable || kind_by_name(path).is_some()))
        .collect();
    libraries.sort();
    libraries.iter().for_each(|path| add(path, None));
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_library(path: &Path) -> bool {
    file_name(path).ends_with(DLL_SUFFIX) && path.is_file()
}

/// The kind of `libsparta_method_lora.so` or `sparta_task_glue.dll`: there may be other libraries beside the
/// executable.
pub fn kind_by_name(path: &Path) -> Option<PluginKind> {
    let name = file_name(path);
    let name = name.strip_prefix(DLL_PREFIX).unwrap_or(name);
    PluginKind::ALL.into_iter().find(|kind| name.starts_with(&format!("sparta_{kind}_")))
}

/// The error for a library that lacks the manifest it needs.
pub fn missing_manifest(path: &Path, origin: Origin) -> String {
    format!(
        "it has no manifest {}, which a library found by {origin} needs; `sparta-cli plugin install {}` makes one, or name the \
         library with --plugin",
        super::Manifest::path(path).display(),
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_a_run_used_keeps_its_place_beside_the_executable() {
        let [own, other] = [0, 1].map(|_| tempfile::tempdir().unwrap());
        let name = format!("{DLL_PREFIX}sparta_method_x{DLL_SUFFIX}");
        let [beside, elsewhere] = [&own, &other].map(|directory| directory.path().join(&name));
        [&beside, &elsewhere].into_iter().for_each(|path| std::fs::write(path, "").unwrap());
        let of_run = |run: &Path| {
            let found = candidates(&DiscoverOptions {
                run: vec![run.to_owned()],
                beside: vec![own.path().to_owned()],
                ..DiscoverOptions::default()
            });
            found.into_iter().map(|candidate| (candidate.path, candidate.origin)).collect::<Vec<_>>()
        };
        assert_eq!(of_run(&beside), [(beside.clone(), Origin::BesideExecutable)]);
        let both = [(elsewhere.clone(), Origin::Run), (beside, Origin::BesideExecutable)];
        assert_eq!(of_run(&elsewhere), both);
    }
}
