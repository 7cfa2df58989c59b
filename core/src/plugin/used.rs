//! The plugins that a run used, and whether those found now are the same.

use super::{PluginKind, PluginSet};
use crate::hash::hash_file;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// A plugin used by a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedPlugin {
    pub kind: PluginKind,
    pub name: String,
    /// As stated by the plugin.
    pub version: String,
    /// Absolute path of the library; `None` if the plugin was linked into the executable.
    pub library: Option<PathBuf>,
    /// Hash of the library, in hex.
    pub sha256: Option<String>,
    /// Version of the executable.
    pub host: String,
}

impl UsedPlugin {
    /// Whether this is known to be the same code: a library with the same bytes, wherever it is, or the same version
    /// linked into the same version of the executable. Linked code has no hash of its own, as the executable changes
    /// with every part of it.
    pub fn is(&self, other: &UsedPlugin) -> bool {
        let same_code = match (&self.sha256, &other.sha256) {
            (Some(a), Some(b)) => a == b,
            (None, None) => (&self.version, &self.host) == (&other.version, &other.host),
            _ => false,
        };
        same_code && (self.kind, &self.name) == (other.kind, &other.name)
    }

    /// The library, if it is still in its place, outside the run's directory, and has the same bytes, or changes are
    /// `allowed`.
    pub fn library_of_run(&self, run: &Path, allowed: bool) -> Option<&Path> {
        let library = self.library.as_deref().filter(|path| path.is_absolute())?;
        let [real, run] = [library, run].map(|path| path.canonicalize().ok());
        let outside = real.zip(run).is_some_and(|(real, run)| !real.starts_with(run));
        let same = || allowed || hash_file(library).ok() == self.sha256;
        (outside && same()).then_some(library)
    }
}

impl fmt::Display for UsedPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.library, &self.sha256) {
            (Some(library), Some(sha256)) => {
                write!(f, "version {} in {} (SHA-256 {sha256})", self.version, library.display())
            }
            _ => write!(f, "version {}, linked into sparta-cli {}", self.version, self.host),
        }
    }
}

/// The plugins recorded by a run, compared with those found now.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Notes on plugins that differ and are accepted.
    pub accepted: Vec<String>,
    /// Plugins that differ, and the error if one is needed.
    refused: Vec<(PluginKind, String, String)>,
}

impl Recorded {
    /// Errors: a library that cannot be read.
    pub fn new<'a>(recorded: impl IntoIterator<Item = &'a UsedPlugin>, plugins: &PluginSet) -> Result<Recorded> {
        let mut this = Recorded::default();
        for was in recorded {
            let is = plugins.used(was.kind, &was.name)?;
            if is.as_ref().is_some_and(|is| was.is(is)) {
                continue;
            }
            let (kind, name) = (was.kind, &was.name);
            let is = is.map_or("is not among the plugins that were found".to_owned(), |is| format!("is now {is}"));
            let difference = format!("the {kind} `{name}` of the run was {was}, and {is}");
            match plugins.allows_other() {
                true => this.accepted.push(format!("{difference}; accepted by --allow-other-plugin")),
                false => this.refused.push((
                    kind,
                    name.clone(),
                    format!(
                        "{difference}: it may compute something else. Name the library that the run used with --plugin, or \
                         accept the other one with --allow-other-plugin"
                    ),
                )),
            }
        }
        this.accepted.dedup();
        Ok(this)
    }

    /// Errors: the plugin is not the one that the run used.
    pub fn check(&self, kind: PluginKind, name: &str) -> Result<()> {
        match self.refused.iter().find(|(k, n, _)| *k == kind && n == name) {
            Some((_, _, what)) => Err(Error::Plugin(what.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(sha256: Option<&str>, version: &str, host: &str) -> UsedPlugin {
        UsedPlugin {
            kind: PluginKind::Method,
            name: "m".into(),
            version: version.into(),
            library: sha256.map(|_| "/a/libm.so".into()),
            sha256: sha256.map(str::to_owned),
            host: host.into(),
        }
    }

    #[test]
    fn bytes_decide_for_libraries_and_versions_for_what_is_linked() {
        let library = used(Some("aa"), "1", "1");
        let moved = UsedPlugin { library: Some("/b/libm.so".into()), host: "2".into(), ..library.clone() };
        assert!(library.is(&moved));
        assert!(!library.is(&used(Some("ab"), "1", "1")), "the same version from a different build");
        let linked = used(None, "1", "1");
        assert!(linked.is(&used(None, "1", "1")) && !linked.is(&library));
        assert!(!linked.is(&used(None, "2", "1")) && !linked.is(&used(None, "1", "2")));
    }

    #[test]
    fn a_run_s_library_is_opened_only_unchanged_and_from_outside() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let at = |path: PathBuf| {
            std::fs::write(&path, "x").unwrap();
            UsedPlugin { sha256: hash_file(&path).ok(), library: Some(path), ..used(None, "1", "1") }
        };
        let outside = at(dir.path().join("libm.so"));
        assert_eq!(outside.library_of_run(&run, false), outside.library.as_deref());
        assert_eq!(at(run.join("libm.so")).library_of_run(&run, true), None);
        std::fs::write(dir.path().join("libm.so"), "y").unwrap();
        assert_eq!(outside.library_of_run(&run, false), None);
        assert_eq!(outside.library_of_run(&run, true), outside.library.as_deref());
        let relative = UsedPlugin { library: Some("libm.so".into()), ..outside };
        assert_eq!(relative.library_of_run(&run, true), None);
    }
}
