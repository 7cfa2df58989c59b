//! `sparta-cli plugin`: from a scaffold to an installed plugin.

mod check;
mod child;
mod install;
mod jobs;
mod list;
mod new;

use crate::args::ListArgs;
use clap::Subcommand;
use sparta_core::Result;
use sparta_core::plugin::PluginSet;
use std::path::PathBuf;

pub use list::list;

#[derive(Subcommand)]
pub enum PluginCommand {
    /// Create a plugin to start from, a crate or a directory in C, that builds and passes `plugin check`
    New(new::NewArgs),
    /// Test a library before publishing it, each test in its own process: what a method or task answers, computes and
    /// saves; every operation of a backend, and whole training runs. The exit code is 1 if a test fails
    Check(check::CheckArgs),
    /// Copy a library to the user's plugins, with a manifest, replacing an earlier one of the same kind and name
    Install(install::InstallArgs),
    /// Remove a plugin from the user's plugins
    Remove(install::RemoveArgs),
    /// List the plugins with their versions and hashes, where they were found, and why any was refused
    List(ListArgs),
}

/// `explicit` is what `--plugin` names.
pub fn run(command: PluginCommand, explicit: &[PathBuf], plugins: &PluginSet) -> Result<()> {
    match command {
        PluginCommand::New(args) => new::new(&args),
        PluginCommand::Check(args) => check::check(&args, explicit, plugins),
        PluginCommand::Install(args) => install::install(&args),
        PluginCommand::Remove(args) => install::remove(&args),
        PluginCommand::List(args) => list(plugins, args.json),
    }
}
