//! Models and data sets given by name: downloads, with progress on stderr.

use crate::output;
use indicatif::{ProgressBar, ProgressStyle};
use sparta_core::hub::{Event, Files, Hub, Kind, Repo, Settings};
use sparta_core::model::shown;
use sparta_core::{Error, Result};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// The directory of a model: the value itself, or the snapshot of `ORG/NAME[@REVISION]`.
pub fn model(value: PathBuf, revision: Option<&str>) -> Result<PathBuf> {
    match (Repo::parse(Kind::Model, &value, revision)?, revision) {
        (Some(repo), _) => get(&repo, &Files::Model),
        (None, Some(revision)) => Err(Error::Usage(format!(
            "--revision {revision} is for models on the hub, but {} is a directory, or not a name like ORG/NAME",
            value.display()
        ))),
        (None, None) => there("--model", value),
    }
}

/// An absolute path, as stored in a run.
///
/// Errors: it is not UTF-8.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    match absolute.to_str() {
        Some(_) => Ok(absolute),
        None => Err(Error::Usage(format!(
            "the path {absolute:?} is not UTF-8, so it cannot be stored; rename its directories"
        ))),
    }
}

/// Errors: a path named by the user does not exist.
fn there(what: &str, path: PathBuf) -> Result<PathBuf> {
    match path.exists() {
        true => Ok(path),
        false => Err(Error::Config(format!(
            "{what} {}: there is no such file or directory, and a name on the hub has the form ORG/NAME",
            path.display()
        ))),
    }
}

/// A run, an adapter or a model: an existing path, or a model's name on the hub.
pub fn run_or_model(value: PathBuf) -> Result<PathBuf> {
    match Repo::parse(Kind::Model, &value, None)? {
        Some(repo) => get(&repo, &Files::Model),
        None => there("RUN or MODEL", value),
    }
}

/// As [`model`], for an optional one.
pub fn optional_model(value: Option<PathBuf>) -> Result<Option<PathBuf>> {
    value.map(|value| model(value, None)).transpose()
}

/// The directory of a task's data: the value itself, or the snapshot of `ORG/NAME[@REVISION]`.
pub fn data(value: PathBuf, task: &str) -> Result<PathBuf> {
    match Repo::parse(Kind::Dataset, &value, None)? {
        Some(repo) => get(&repo, &Files::Task(task.to_owned())),
        None => there("--data", value),
    }
}

fn get(repo: &Repo, files: &Files) -> Result<PathBuf> {
    let terminal = std::io::stderr().is_terminal();
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
    let bar = ProgressBar::hidden().with_style(style.unwrap_or(ProgressStyle::default_bar()));
    let mut current = String::new();
    let directory = Hub::new(Settings::from_env()).get(repo, files, &mut |event| match event {
        Event::Message(text) => bar.suspend(|| output::aside(text)),
        Event::File { name, done, total } => {
            if current != name {
                current = name.to_owned();
                match terminal {
                    true => {
                        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                        bar.set_message(shown(&current));
                        bar.set_length(total);
                        bar.reset();
                    }
                    false => output::aside(format!("downloading {} of {}, {}", name, repo.id, output::bytes(total))),
                }
            }
            bar.set_position(done);
        }
    });
    bar.finish_and_clear();
    directory.map_err(|error| {
        Error::Hub(format!("there is no directory {} here, so it was looked for on the hub: {error}", repo.id))
    })
}
