//! `sparta-cli plugin list`.

use crate::output::{self, table};
use serde::Serialize;
use sparta_core::Result;
use sparta_core::hash::hash_file;
use sparta_core::plugin::{Found, PluginSet, State};

/// A plugin with the SHA-256 of its library, if that can be read.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    found: &'a Found,
    sha256: Option<String>,
}

/// Lists the plugins: where each was found, its version and hash, and errors.
pub fn list(plugins: &PluginSet, json: bool) -> Result<()> {
    let hash = |found: &Found| found.path.is_file().then(|| hash_file(&found.path).ok()).flatten();
    let all: Vec<Listed> = plugins.report().iter().map(|found| Listed { found, sha256: hash(found) }).collect();
    if json {
        return output::json_line(&all);
    }
    if all.is_empty() {
        return output::print("no plugins were found; name a library or a directory with --plugin");
    }
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    output::print(table(&["KIND", "NAME", "VERSION", "SHA-256", "STATE", "FOUND BY", "LIBRARY"], &rows))
}

fn row(Listed { found, sha256 }: &Listed) -> Vec<String> {
    let state = match &found.state {
        State::Loaded if found.not_its_tasks.is_empty() => "loaded".to_owned(),
        State::Loaded => format!("loaded, except {}: an earlier plugin has it", found.not_its_tasks.join(", ")),
        State::Shadowed { by } => format!("not used: {} was found first", by.display()),
        State::Refused { reason } => format!("refused: {reason}"),
    };
    let kind = found.kind.map(|kind| kind.to_string()).unwrap_or_default();
    vec![
        kind,
        found.name.clone(),
        found.version.clone(),
        sha256.as_deref().map(|hash| hash[..12].to_owned()).unwrap_or_default(),
        state,
        found.origin.to_string(),
        found.path.display().to_string(),
    ]
}
