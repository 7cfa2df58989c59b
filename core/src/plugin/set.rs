use super::backend::LoadedBackendPlugin;
use super::communicator::LoadedCommunicatorPlugin;
use super::discover::{Candidate, DiscoverOptions, Origin, candidates, kind_by_name, missing_manifest};
use super::library::{Entry, Functions, Implementation};
use super::manifest::Manifest;
use super::method::LoadedMethod;
use super::task::LoadedTask;
use super::used::UsedPlugin;
use super::{library, loader};
use crate::files::{self, Map};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_plugin::abi::{BACKEND_ID, COMMUNICATOR_ID, METHOD_ID, TASK_ID};
use sparta_plugin::task::TaskInfo;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginKind {
    Method,
    Task,
    Backend,
    Communicator,
}

impl PluginKind {
    pub const ALL: [PluginKind; 4] =
        [PluginKind::Method, PluginKind::Task, PluginKind::Backend, PluginKind::Communicator];

    /// The id of its interface: `sparta.method/1`.
    pub fn interface(self) -> &'static str {
        match self {
            PluginKind::Method => METHOD_ID,
            PluginKind::Task => TASK_ID,
            PluginKind::Backend => BACKEND_ID,
            PluginKind::Communicator => COMMUNICATOR_ID,
        }
    }
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PluginKind::Method => "method",
            PluginKind::Task => "task",
            PluginKind::Backend => "backend",
            PluginKind::Communicator => "communicator",
        })
    }
}

/// One line of `sparta-cli plugin list`: a plugin, or a file that is not one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The library; `built in` for a plugin linked into the executable.
    pub path: PathBuf,
    pub origin: Origin,
    pub manifest: bool,
    pub kind: Option<PluginKind>,
    /// The plugin's own name; empty if it could not be asked.
    pub name: String,
    pub version: String,
    pub state: State,
    /// Its tasks that an earlier plugin already offers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_its_tasks: Vec<String>,
}

impl Found {
    fn new(path: PathBuf, origin: Origin) -> Found {
        let (name, version) = (String::new(), String::new());
        let not_its_tasks = Vec::new();
        Found { path, origin, manifest: false, kind: None, name, version, state: State::Loaded, not_its_tasks }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Loaded,
    /// A plugin of the same kind and name was found first, at this path.
    Shadowed {
        by: PathBuf,
    },
    /// Why it is not used.
    Refused {
        reason: String,
    },
}

/// The plugins available in this process.
#[derive(Default)]
pub struct PluginSet {
    methods: Vec<Arc<LoadedMethod>>,
    tasks: Vec<Arc<LoadedTask>>,
    backends: Vec<Arc<LoadedBackendPlugin>>,
    communicators: Vec<Arc<LoadedCommunicatorPlugin>>,
    report: Vec<Found>,
    allow_other: bool,
}

impl PluginSet {
    /// Loads every plugin at the places. Failures are recorded in [`PluginSet::report`] and do not stop the others.
    pub fn discover(options: &DiscoverOptions) -> PluginSet {
        let mut set = PluginSet { allow_other: options.allow_other, ..PluginSet::default() };
        for candidate in candidates(options) {
            set.load(&candidate, &options.unneeded);
        }
        set
    }

    /// Errors: a library named by the user, with --plugin or in the configuration, is not used; a directory named by
    /// the user has no plugin.
    pub fn check_named(&self, options: &DiscoverOptions) -> Result<()> {
        for place in options.explicit.iter().chain(&options.configured) {
            let reason = |found: &Found| match &found.state {
                State::Refused { reason } => Some(format!("plugin {}: {reason}", found.path.display())),
                _ => None,
            };
            let named = || self.report.iter().filter(|found| found.path == *place);
            let inside = || self.report.iter().filter(|found| found.path != *place && found.path.starts_with(place));
            let refused: Vec<String> = named().filter_map(reason).collect();
            if !refused.is_empty() {
                return Err(Error::Plugin(refused.join("; ")));
            }
            if files::is_dir(place) && inside().all(|found| reason(found).is_some()) {
                let reasons: Vec<String> = inside().filter_map(reason).collect();
                let reasons = if reasons.is_empty() { "there is no library".to_owned() } else { reasons.join("; ") };
                return Err(Error::Plugin(format!("{}: no plugin was loaded from it: {reasons}", place.display())));
            }
        }
        Ok(())
    }

    /// A note for the plan if the plugin of this kind and name did not come with the program.
    pub fn note(&self, kind: PluginKind, name: &str) -> Option<String> {
        let own = |found: &&Found| matches!(found.origin, Origin::BesideExecutable | Origin::Linked);
        let same = || self.report.iter().filter(|found| found.kind == Some(kind) && found.name == name);
        let used = same().find(|found| found.state == State::Loaded).filter(|found| !own(found))?;
        let instead = match same().any(|found| own(&found)) {
            true => ", in place of the one that comes with sparta-cli",
            false => "",
        };
        let (version, path, origin) = (&used.version, used.path.display(), used.origin);
        Some(format!("the {kind} plugin {name} {version} is {path} ({origin}){instead}"))
    }

    /// Adds a plugin linked into this executable, unless there already is one of its kind and name. The outcome is
    /// recorded in [`PluginSet::report`].
    ///
    /// # Safety
    /// `entry` obeys the ABI, and what it returns lives as long as the process.
    pub unsafe fn link(&mut self, entry: Entry) {
        let found = Found::new(PathBuf::from("built in"), Origin::Linked);
        // SAFETY: the caller vouches for it.
        match unsafe { library::enter(entry) } {
            Ok(interfaces) => interfaces.into_iter().for_each(|functions| self.register(functions, found.clone())),
            Err(reason) => self.report.push(Found { state: State::Refused { reason }, ..found }),
        }
    }

    pub fn methods(&self) -> &[Arc<LoadedMethod>] {
        &self.methods
    }

    pub fn tasks(&self) -> &[Arc<LoadedTask>] {
        &self.tasks
    }

    pub fn backends(&self) -> &[Arc<LoadedBackendPlugin>] {
        &self.backends
    }

    pub fn communicators(&self) -> &[Arc<LoadedCommunicatorPlugin>] {
        &self.communicators
    }

    /// Everything found, in search order.
    pub fn report(&self) -> &[Found] {
        &self.report
    }

    /// Whether a plugin may differ from the one that a run used.
    pub fn allows_other(&self) -> bool {
        self.allow_other
    }

    /// The record of the plugin of this kind and name, for a run; `None` if there is none.
    ///
    /// Errors: a library that can no longer be read.
    pub fn used(&self, kind: PluginKind, name: &str) -> Result<Option<UsedPlugin>> {
        let loaded = |found: &&Found| found.state == State::Loaded && found.kind == Some(kind) && found.name == name;
        let Some(found) = self.report.iter().find(loaded) else { return Ok(None) };
        let library = match found.origin {
            Origin::Linked => None,
            _ => Some(found.path.canonicalize().map_err(Error::io(&found.path))?),
        };
        Ok(Some(UsedPlugin {
            kind,
            name: name.to_owned(),
            version: found.version.clone(),
            sha256: library.as_deref().map(loader::hash_of).transpose()?,
            library,
            host: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    /// The method of this name.
    pub fn method(&self, name: &str) -> Result<Arc<LoadedMethod>> {
        let found = self.methods.iter().find(|method| method.info().name == name);
        found.cloned().ok_or_else(|| self.unknown("method", name, self.methods.iter().map(|m| &*m.info().name)))
    }

    /// The plugin with the task of this id, and the task.
    pub fn task(&self, id: &str) -> Result<(Arc<LoadedTask>, TaskInfo)> {
        let tasks = || self.tasks.iter().flat_map(|plugin| plugin.info().tasks.iter().map(move |task| (plugin, task)));
        let found = tasks().find(|(_, task)| task.id == id);
        found
            .map(|(plugin, task)| (plugin.clone(), task.clone()))
            .ok_or_else(|| self.unknown("task", id, tasks().map(|(_, task)| &*task.id)))
    }

    fn unknown<'a>(&self, what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Error {
        let mut message = match crate::method::options::nearest(name, known.clone()) {
            Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
            None => format!("there is no {what} `{name}`."),
        };
        match known.collect::<Vec<_>>() {
            known if known.is_empty() => message += &format!(" No {what} plugin was found."),
            known => message += &format!(" The plugins that were found offer: {}.", known.join(", ")),
        }
        let refused = self.report.iter().filter(|found| matches!(found.state, State::Refused { .. })).count();
        if refused > 0 {
            message += &format!(" {refused} could not be loaded, see `sparta-cli plugin list`.");
        }
        Error::Plugin(message)
    }

    fn load(&mut self, candidate: &Candidate, unneeded: &[PluginKind]) {
        let beside = candidate.origin == Origin::BesideExecutable;
        if beside && kind_by_name(&candidate.path).is_some_and(|kind| unneeded.contains(&kind)) {
            return;
        }
        let mut found = Found::new(candidate.path.clone(), candidate.origin);
        let interfaces = match &candidate.problem {
            Some(problem) => Err(problem.clone()),
            None => open(candidate, &mut found, unneeded),
        };
        match interfaces {
            Ok(interfaces) => interfaces.into_iter().for_each(|functions| self.register(functions, found.clone())),
            Err(reason) => self.report.push(Found { state: State::Refused { reason }, ..found }),
        }
    }

    /// Adds one interface of an open library, unless its description is invalid or its name is taken.
    fn register(&mut self, functions: Functions, mut found: Found) {
        let promised = std::mem::take(&mut found.name);
        found.kind = Some(functions.kind());
        if let Err(reason) = self.add(functions, &mut found, &promised) {
            found.state = State::Refused { reason };
        }
        self.report.push(found);
    }

    fn add(&mut self, functions: Functions, found: &mut Found, promised: &str) -> std::result::Result<(), String> {
        let place = found.path.display().to_string();
        // The report already names the library.
        let prefix = format!("plugin {place}: ");
        let plain = |e: sparta_plugin::Error| e.0.strip_prefix(&prefix).unwrap_or(&e.0).to_owned();
        match functions {
            Functions::Method(table) => {
                let method = LoadedMethod::new(Implementation { table, name: place.clone() }).map_err(plain)?;
                let info = method.info();
                if self.accept(found, promised, &info.name, &info.version)? {
                    self.methods.push(Arc::new(method));
                }
            }
            Functions::Task(table) => {
                let task = LoadedTask::new(Implementation { table, name: place.clone() }).map_err(plain)?;
                let info = task.info();
                if self.accept(found, promised, &info.name, &info.version)? {
                    let ids = info.tasks.iter().map(|task| task.id.clone());
                    found.not_its_tasks = ids.filter(|id| self.task(id).is_ok()).collect();
                    self.tasks.push(Arc::new(task));
                }
            }
            Functions::Backend(table) => {
                let backend = LoadedBackendPlugin::new(Implementation { table, name: place.clone() }).map_err(plain)?;
                let info = backend.info();
                if self.accept(found, promised, &info.name, &info.version)? {
                    self.backends.push(Arc::new(backend));
                }
            }
            Functions::Communicator(table) => {
                let communicator =
                    LoadedCommunicatorPlugin::new(Implementation { table, name: place.clone() }).map_err(plain)?;
                let info = communicator.info();
                if self.accept(found, promised, &info.name, &info.version)? {
                    self.communicators.push(Arc::new(communicator));
                }
            }
        }
        Ok(())
    }

    /// Records a plugin's name and version; false if another plugin of its kind has the name.
    fn accept(
        &self,
        found: &mut Found,
        promised: &str,
        name: &str,
        version: &str,
    ) -> std::result::Result<bool, String> {
        (found.name, found.version) = (name.to_owned(), version.to_owned());
        if found.manifest && promised != name {
            return Err(format!("the manifest calls it `{promised}`, the plugin itself `{name}`"));
        }
        let same = |other: &&Found| other.state == State::Loaded && other.kind == found.kind && other.name == name;
        let first = self.report.iter().find(same).map(|other| other.path.clone());
        let loaded = first.is_none();
        if let Some(by) = first {
            found.state = State::Shadowed { by };
        }
        Ok(loaded)
    }
}

/// Checks a library's manifest and file format, then opens it, unless the manifest gives a kind that is not needed.
/// Puts the manifest's name into `found`.
fn open(
    candidate: &Candidate,
    found: &mut Found,
    unneeded: &[PluginKind],
) -> std::result::Result<Vec<Functions>, String> {
    let path: &Path = &candidate.path;
    let file = files::open_on_disk(path).map_err(|e| format!("cannot be read: {e}"))?;
    let bytes = Map::of_disk(&file).map_err(|e| format!("cannot be read: {e}"))?;
    let manifest = Manifest::read(path).map_err(|e| e.to_string())?;
    found.manifest = manifest.is_some();
    let promised = match &manifest {
        Some(manifest) => {
            found.kind = Some(manifest.kind);
            found.name = manifest.name.clone();
            if unneeded.contains(&manifest.kind) {
                return Ok(Vec::new());
            }
            manifest.check(&bytes)?;
            Some(manifest.kind)
        }
        None if candidate.origin.trusts_without_manifest() => None,
        None => return Err(missing_manifest(path, candidate.origin)),
    };
    loader::check(&bytes)?;
    drop(bytes);
    let interfaces = loader::open(path, file)?;
    if let Some(kind) = promised
        && let Some(other) = interfaces.iter().find(|functions| functions.kind() != kind)
    {
        return Err(format!(
            "the manifest calls it a {kind}, the library has the interface {}",
            other.kind().interface()
        ));
    }
    Ok(interfaces)
}
