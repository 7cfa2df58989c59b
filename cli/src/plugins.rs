//! `sparta-cli plugins`.

use crate::output::{self, table};
use sparta_core::Result;
use sparta_core::plugin::{Found, PluginSet, State};

/// What was found where, with versions and errors.
pub fn list(plugins: &PluginSet, json: bool) -> Result<()> {
    if json {
        return output::json_line(&plugins.report());
    }
    if plugins.report().is_empty() {
        return output::print("no plugins were found; name a library or a directory with --plugin");
    }
    let rows: Vec<Vec<String>> = plugins.report().iter().map(row).collect();
    output::print(table(&["KIND", "NAME", "VERSION", "STATE", "FOUND BY", "LIBRARY"], &rows))
}

fn row(found: &Found) -> Vec<String> {
    let state = match &found.state {
        State::Loaded if found.not_its_tasks.is_empty() => "loaded".to_owned(),
        State::Loaded => format!("loaded, but not its {}: an earlier one has it", found.not_its_tasks.join(", ")),
        State::Shadowed { by } => format!("not used: {} was found first", by.display()),
        State::Refused { reason } => format!("refused: {reason}"),
    };
    let kind = found.kind.map(|kind| kind.to_string()).unwrap_or_default();
    vec![
        kind,
        found.name.clone(),
        found.version.clone(),
        state,
        found.origin.to_string(),
        found.path.display().to_string(),
    ]
}
