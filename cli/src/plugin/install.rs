//! `sparta-cli plugin install` and `plugin remove`.

use super::check;
use crate::output;
use clap::Args;
use sparta_core::job::config::one_of;
use sparta_core::plugin::{self, PluginKind};
use sparta_core::{Error, Result};
use std::path::PathBuf;

#[derive(Args)]
pub struct InstallArgs {
    /// The library to install
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

#[derive(Args)]
pub struct RemoveArgs {
    /// The plugin's name, as in `plugin list`
    #[arg(value_name = "NAME")]
    name: String,
    /// method, task, backend or communicator, if several plugins have this name
    #[arg(long, value_name = "KIND", value_parser = one_of(KINDS))]
    kind: Option<PluginKind>,
}

pub const KINDS: &[(&str, PluginKind)] = &[
    ("method", PluginKind::Method),
    ("task", PluginKind::Task),
    ("backend", PluginKind::Backend),
    ("communicator", PluginKind::Communicator),
];

fn directory() -> Result<PathBuf> {
    plugin::user_directory().ok_or_else(|| {
        Error::Usage("there is no directory for the user's plugins; set HOME, or name the library with --plugin".into())
    })
}

pub fn install(args: &InstallArgs) -> Result<()> {
    check::try_load(&args.path)?;
    let installed = plugin::install(&args.path, &directory()?)?;
    let (manifest, library) = (&installed.manifest, installed.library.display());
    output::print(format!("installed the {} {} as {library}", manifest.kind, manifest.name))?;
    output::print(format!("SHA-256 {}", manifest.sha256))
}

pub fn remove(args: &RemoveArgs) -> Result<()> {
    for removed in plugin::remove(&args.name, args.kind, &directory()?)? {
        output::print(format!("removed the {} {}", removed.manifest.kind, removed.library.display()))?;
    }
    Ok(())
}
