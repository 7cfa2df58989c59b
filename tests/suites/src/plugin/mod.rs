//! What every method and every task has to pass, as tests that can run one by one, each in its own process.

mod method;
mod steps;
mod task;

use serde_json::Value as Json;
use sparta_core::plugin::{PluginKind, PluginSet};
use sparta_graph::Backend;
use sparta_plugin::options::{OptionInfo, OptionKind, Options};
use std::path::{Path, PathBuf};

/// A remark on a passed test, if any, or how it ended otherwise.
pub type Outcome = Result<String, Ending>;

/// How a test ended that did not pass.
pub enum Ending {
    /// What is wrong, in a sentence.
    Failed(String),
    /// Why it does not apply.
    Skipped(String),
}

impl From<String> for Ending {
    fn from(what: String) -> Ending {
        Ending::Failed(what)
    }
}

impl From<sparta_plugin::Error> for Ending {
    fn from(error: sparta_plugin::Error) -> Ending {
        Ending::Failed(error.0)
    }
}

/// A passed test, without remarks.
fn passed() -> Outcome {
    Ok(String::new())
}

fn failed(what: impl Into<String>) -> Outcome {
    Err(Ending::Failed(what.into()))
}

/// One test of one plugin.
pub struct PluginTest {
    pub kind: PluginKind,
    /// The method's name, or the task's id.
    pub subject: String,
    /// `gradients`.
    pub what: &'static str,
}

impl PluginTest {
    /// `method lora: gradients`.
    pub fn name(&self) -> String {
        format!("{} {}: {}", self.kind, self.subject, self.what)
    }
}

/// The tests of the methods and tasks of a set.
pub fn tests(plugins: &PluginSet) -> Vec<PluginTest> {
    let test = |kind, subject: &str, what| PluginTest { kind, subject: subject.to_owned(), what };
    let mut all = Vec::new();
    for method in plugins.methods() {
        all.extend(method::TESTS.iter().map(|(what, _)| test(PluginKind::Method, &method.info().name, *what)));
    }
    for task in plugins.tasks().iter().flat_map(|plugin| &plugin.info().tasks) {
        all.extend(task::TESTS.iter().map(|(what, _)| test(PluginKind::Task, &task.id, *what)));
    }
    all
}

/// Opens the devices on which kernels that methods bring are tried.
pub type OpenDevices<'a> = &'a dyn Fn() -> Vec<Box<dyn Backend>>;

/// Runs one of [`tests`]. `data` is what tasks read.
pub fn run(test: &PluginTest, plugins: &PluginSet, data: Option<&Path>, devices: OpenDevices) -> Outcome {
    let unknown = || format!("there is no test `{}`", test.name());
    match test.kind {
        PluginKind::Method => {
            let (_, check) = method::TESTS.iter().find(|(what, _)| *what == test.what).ok_or_else(unknown)?;
            check(&*plugins.method(&test.subject).map_err(|e| e.to_string())?, devices)
        }
        PluginKind::Task => {
            let (_, check) = task::TESTS.iter().find(|(what, _)| *what == test.what).ok_or_else(unknown)?;
            let (plugin, info) = plugins.task(&test.subject).map_err(|e| e.to_string())?;
            check(&task::Subject { plugin, info, data: data.map(PathBuf::from) })
        }
        PluginKind::Backend | PluginKind::Communicator => Err(unknown().into()),
    }
}

/// A value for each option: its default or, if it has none, the smallest.
pub fn defaults(declared: &[OptionInfo]) -> Options {
    let value = |option: &OptionInfo| option.default.clone().unwrap_or_else(|| ends(option)[0].clone());
    declared.iter().map(|option| (option.name.clone(), value(option))).collect()
}

/// Values at the ends of an option's range.
fn ends(option: &OptionInfo) -> Vec<Json> {
    match option.kind {
        OptionKind::Float { min, max, min_open: false } => vec![min.into(), max.into()],
        // Something in the range; the minimum is not.
        OptionKind::Float { min, max, min_open: true } => vec![(min + (max - min) / 1024.0).into(), max.into()],
        OptionKind::Int { min, max } => vec![min.into(), max.into()],
        OptionKind::Bool => vec![false.into(), true.into()],
        OptionKind::Text => vec!["".into(), "no such value".into()],
    }
}

/// The settings to try: all defaults, and each option at the ends of its range with the others at their defaults.
fn settings(declared: &[OptionInfo]) -> Vec<Options> {
    let all = defaults(declared);
    let moved = |option: &OptionInfo, value| {
        let mut options = all.clone();
        options.insert(option.name.clone(), value);
        options
    };
    let ends = declared.iter().flat_map(|option| ends(option).into_iter().map(move |value| (option, value)));
    [all.clone()].into_iter().chain(ends.map(|(option, value)| moved(option, value))).collect()
}

/// What every error must do: say something.
fn check_message(what: &str, error: &sparta_plugin::Error) -> Result<(), String> {
    match error.0.trim().is_empty() {
        true => Err(format!("{what} failed without a message")),
        false => Ok(()),
    }
}

/// Whether an error is a panic that was caught at the plugin's boundary: a user can cause it, so it should be a
/// message.
fn check_no_panic(what: &str, error: &sparta_plugin::Error) -> Result<(), String> {
    check_message(what, error)?;
    match error.0.contains("the plugin panicked") {
        true => Err(format!("{what}: {error}")),
        false => Ok(()),
    }
}
