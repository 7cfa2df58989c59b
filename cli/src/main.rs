//! `sparta-cli`: arguments, progress, reports. What is computed is in `sparta-core`.

mod adapter;
mod allocator;
mod args;
mod bench;
mod builtin;
mod comm;
mod data;
mod default_job;
mod device_report;
mod devices;
mod generate;
mod hub;
mod infer;
mod limits;
mod logging;
mod memory;
mod merge;
mod output;
mod parse;
mod plugin;
mod presets;
mod pretrain;
mod progress;
mod rank;
mod report;
mod sweep;
mod tensorboard;
mod texts;
mod together;
mod train;
mod tui;
mod watch;

use args::{Command, Inspect};
use parse::{Job, Parsed, Stop};
use sparta_core::job::Stopped;
use sparta_core::plugin::running;
use sparta_core::{Error, Result, text};
use std::ffi::OsString;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code for wrong arguments, as in clap; other errors give 1.
const USAGE: u8 = 2;

#[global_allocator]
static ALLOCATOR: allocator::Limited = allocator::Limited;

/// Bytes that a renderer of chat templates may allocate.
const RENDERER_MEMORY: isize = 256 << 20;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == text::RENDERER) {
        allocator::limit_memory(RENDERER_MEMORY);
        let served = text::serve(BufReader::new(std::io::stdin()), std::io::stdout());
        return if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    output::keep_stdout();
    // If this name cannot be started, the first template reports it.
    text::render_apart(std::env::current_exe().unwrap_or("sparta-cli".into()));
    // Mesa prints an error if this is unset, as in most containers.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the process has no other thread yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    if let Err(what) = limits::prepare() {
        output::aside(format!("error: {what}"));
        return ExitCode::FAILURE;
    }
    running::watch(|text| output::aside(text));
    let _ending = Ending;
    run()
}

/// Marks an orderly end of the program, panics included, as opposed to a library that calls exit.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        running::ending();
    }
}

fn run() -> ExitCode {
    let text = |argument: OsString| {
        argument.into_string().map_err(|argument| {
            Stop::Error(Error::Usage(format!(
                "the argument {argument:?} is not UTF-8, so it cannot be stored; rename the file"
            )))
        })
    };
    let argv = std::env::args_os().map(text).collect::<std::result::Result<_, _>>();
    let outcome = argv.and_then(parse::parse).and_then(|parsed| Ok(execute(parsed)?));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Stop::Clap(error)) => {
            output::explain(&error);
            ExitCode::from(error.exit_code() as u8)
        }
        Err(Stop::Error(error)) => {
            output::aside(format!("error: {error}"));
            ExitCode::from(if matches!(error, Error::Usage(_)) { USAGE } else { 1 })
        }
    }
}

/// Returns the exit code: [`INTERRUPTED`] if a run was interrupted and saved.
fn execute(parsed: Parsed) -> Result<u8> {
    let Parsed { cli, plugins, options, resumed } = parsed;
    let job = |args, options| Job { args, options, resumed };
    let stopped = |stopped| if stopped == Stopped::Interrupted { progress::INTERRUPTED } else { 0 };
    match cli.command {
        Command::Run { args, watch } => {
            return train::run(job(args, options), &watch, &plugins).map(stopped);
        }
        Command::Pretrain(args) => {
            together::refuse("pretrain", &plugins)?;
            return pretrain::pretrain(args, options.method, &plugins).map(stopped);
        }
        Command::Sweep(args) => {
            together::refuse("sweep", &plugins)?;
            sweep::sweep(args, plugin_options(&cli.plugin, cli.allow_other_plugin), &plugins)
        }
        Command::Plan { args, assume } => train::plan(job(args, options), assume.as_deref(), &plugins),
        Command::Data { show, args, .. } => data::show(job(args, options), &show, &plugins),
        Command::Eval(args) => infer::eval(args, &plugins),
        Command::Predict(args) => infer::predict(args, &plugins),
        Command::Generate(args) => generate::generate(args, &plugins),
        Command::Inspect { what: Inspect::Forward(args) } => infer::inspect_forward(args, &plugins),
        Command::Adapter { what } => adapter::run(what, &plugins),
        Command::MergeAdapters(args) => merge::merge_adapters(args, &plugins),
        Command::Rank(args) => rank::rank(args),
        Command::Report(args) => report::report(args),
        Command::Plugins(args) => plugin::list(&plugins, args.json),
        Command::Plugin { what } => plugin::run(what, &cli.plugin, &plugins),
        Command::Presets(args) => presets::list(args),
        Command::Bench(args) => bench::bench(args, &plugins),
        Command::Devices { list, report: None } => devices::list(&plugins, list.json),
        Command::Devices { report: Some(file), .. } => device_report::write(&plugins, &file),
        Command::Completions { shell: Some(shell) } => completions(shell, &plugins),
        Command::Completions { shell: None } => output::print(COMPLETIONS),
    }?;
    Ok(0)
}

/// The options of this command that select plugins, for child processes.
fn plugin_options(explicit: &[PathBuf], allow_other: bool) -> Vec<String> {
    let explicit = explicit.iter().map(|path| format!("--plugin={}", path.display()));
    explicit.chain(allow_other.then(|| "--allow-other-plugin".to_owned())).collect()
}

/// Where shells look for completions.
const COMPLETIONS: &str = "\
sparta-cli completions SHELL prints a script; store it once, and again after each update:

  bash        sparta-cli completions bash > ~/.local/share/bash-completion/completions/sparta-cli
  zsh         sparta-cli completions zsh > ~/.zfunc/_sparta-cli        (with ~/.zfunc in fpath)
  fish        sparta-cli completions fish > ~/.config/fish/completions/sparta-cli.fish
  powershell  sparta-cli completions powershell >> $PROFILE
  elvish      sparta-cli completions elvish >> ~/.config/elvish/rc.elv";

/// Completes `run` and `plan` with the options of all methods and tasks, each name once.
fn completions(shell: clap_complete::Shell, plugins: &sparta_core::plugin::PluginSet) -> Result<()> {
    let mut command = parse::command_of_all_plugins(plugins);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "sparta-cli", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())
}
