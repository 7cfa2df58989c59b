//! `sparta-cli plugin`: from a scaffold to a plugin that is installed.

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
    /// Make a crate, or a directory in C, with a plugin to begin with: it builds and passes `plugin check`
    New(new::NewArgs),
    /// Test a library before publishing it, each test in a process of its own: of a method and a task, what it answers, computes
    /// and saves; of a backend, every operation and whole trainings. Exit code 1 when something fails
    Check(check::CheckArgs),
    /// Copy a library to the user's plugins, with a manifest, in place of an earlier one of its kind and name
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
