//! From arguments and configuration file to one parsed command.
//!
//! The options of `run` depend on the method, whose plugin declares them, and their values come from three places. So the
//! method is found first, its options are added to the command, and the entries of the configuration file and of the
//! embedded job are put before the user's arguments as arguments of the same name: of several, the last one counts.

use crate::args::{Cli, Command, DEFAULT_METHOD, RunArgs};
use crate::builtin;
use crate::default_job::DefaultJob;
use crate::presets::{self, Preset};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};
use sparta_core::method::options::{Given, check, nearest};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::{Error, Result};
use sparta_plugin::method::{MethodInfo, OptionKind, Options};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A command that does not train, or one that does with what its method needs.
pub struct Parsed {
    pub cli: Cli,
    pub plugins: PluginSet,
    /// Checked options of the method, for `run` and `plan`.
    pub method_options: Options,
}

/// Why there is no command.
pub enum Stop {
    /// Wrong usage, or a request for help or the version.
    Clap(clap::Error),
    Error(Error),
}

impl From<clap::Error> for Stop {
    fn from(error: clap::Error) -> Stop {
        Stop::Clap(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error)
    }
}

/// Parses `argv`, the program's name first.
pub fn parse(argv: Vec<String>) -> std::result::Result<Parsed, Stop> {
    let explicit: Vec<PathBuf> = values(&argv, "--plugin").into_iter().map(PathBuf::from).collect();
    let discover = |configured| {
        let mut plugins = PluginSet::discover(&DiscoverOptions::standard(explicit.clone(), configured));
        builtin::link(&mut plugins);
        plugins
    };
    let Some(at) = argv.iter().position(|arg| arg == "run" || arg == "plan") else {
        let cli = Cli::from_arg_matches(&base_command().try_get_matches_from(&argv)?)?;
        return Ok(Parsed { cli, plugins: discover(Vec::new()), method_options: Options::new() });
    };
    // `run` or `plan` as the value of another option is parsed as any other command.
    let file = match values(&argv, "--config").pop() {
        Some(path) => ConfigFile::read(Path::new(&path))?,
        None => ConfigFile::default(),
    };
    let preset = values(&argv, "--preset").pop().or_else(|| file.get("preset"));
    let preset = preset.map(|name| presets::find(&name)).transpose()?;
    let method = values(&argv, "--method").pop().or_else(|| file.get("method"));
    let method = match &preset {
        Some(preset) => preset.method(method)?,
        None => method.unwrap_or(DEFAULT_METHOD.into()),
    };
    let plugins = discover(file.plugins.clone());
    let info = plugins.method(&method).map(|method| method.info().clone());
    let command = command(info.as_ref().ok())?;
    let file_args = file.arguments(&command, &plugins, &method)?;

    let with = |extra: Vec<String>| [&argv[..=at], &extra, &argv[at + 1..]].concat();
    let parse =
        |argv: Vec<String>| command.clone().try_get_matches_from(argv).map_err(|e| explain(e, &plugins, &method));
    // The file's entries alone first: what is wrong there is told with the file's name.
    if !file_args.is_empty() {
        let alone = ["sparta-cli".to_owned(), "run".to_owned()].into_iter().chain(file_args.clone()).collect();
        parse(alone).map_err(|e| Error::Usage(format!("{}: {}", file.path.display(), first_paragraph(&e))))?;
    }
    let preset_args = preset.iter().filter(|_| values(&argv, "--resume").is_empty()).flat_map(Preset::arguments);
    let file_args: Vec<String> = preset_args.chain(file_args).collect();
    let mut matches = parse(with(file_args.clone()))?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if run_args(&cli).is_some_and(|args| args.resume.is_some()) {
        only_resume(&matches)?;
        return Ok(Parsed { cli, plugins, method_options: Options::new() });
    }
    if run_args(&cli).is_some_and(|args| args.model.is_none() && args.data.is_none()) {
        matches = parse(with([DefaultJob::arguments(&method)?, file_args].concat()))?;
        cli = Cli::from_arg_matches(&matches)?;
    }
    if let (Some(preset), Some((_, given))) = (&preset, matches.subcommand()) {
        preset.check_grid(|option| given.value_source(&option.replace('-', "_")) == Some(ValueSource::CommandLine))?;
    }
    let method_options = match run_args(&cli) {
        Some(_) => {
            let info = info.map_err(|e| Error::Usage(e.to_string()))?;
            check(&info, &given(&matches, &info))?
        }
        None => Options::new(),
    };
    Ok(Parsed { cli, plugins, method_options })
}

/// The command without options of methods.
pub fn base_command() -> clap::Command {
    // A negative number is a wrong value of an option, not an unknown option.
    let numbers = |arg: Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
    let command = Cli::command();
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |c| c.mut_args(numbers)))
}

/// [`base_command`] with the options of a method on `run` and `plan`.
///
/// Errors: an option of the method has the name of one of ours.
pub fn command(method: Option<&MethodInfo>) -> Result<clap::Command> {
    let mut command = base_command();
    let Some(method) = method else { return Ok(command) };
    for subcommand in ["run", "plan"] {
        for option in &method.options {
            let own = command.find_subcommand(subcommand).into_iter().flat_map(clap::Command::get_arguments);
            if own.chain(command.get_arguments()).any(|arg| arg.get_long() == Some(&option.name)) {
                return Err(Error::Plugin(format!(
                    "method {}: its option --{} has the name of another option of `{subcommand}`; rename it",
                    method.name, option.name
                )));
            }
        }
        let heading = format!("Options of method {}", method.name);
        let args: Vec<Arg> = method.options.iter().map(|o| method_arg(o).help_heading(heading.clone())).collect();
        command = command.mut_subcommand(subcommand, |c| c.args(args).after_help(method.summary.clone()));
    }
    Ok(command)
}

/// [`command`] with the options of every method, each name once.
pub fn command_of_all_methods(plugins: &PluginSet) -> clap::Command {
    let mut all = MethodInfo {
        name: String::new(),
        version: String::new(),
        summary: String::new(),
        options: Vec::new(),
        default_lr: 0.0,
    };
    for option in plugins.methods().iter().flat_map(|method| &method.info().options) {
        if all.options.iter().all(|known| known.name != option.name) {
            all.options.push(option.clone());
        }
    }
    command(Some(&all)).unwrap_or_else(|_| base_command())
}

fn method_arg(option: &sparta_plugin::method::OptionInfo) -> Arg {
    let (value, range) = match &option.kind {
        OptionKind::Float { min, max, min_open } => {
            ("X", format!(" [from {}{min} to {max}]", if *min_open { "above " } else { "" }))
        }
        OptionKind::Int { min, max } => ("N", format!(" [from {min} to {max}]")),
        OptionKind::Bool => ("BOOL", String::new()),
        OptionKind::Text => ("TEXT", String::new()),
    };
    let default = option.default.as_ref().map(|value| match value.as_str() {
        Some(text) => format!(" [default: {text}]"),
        None => format!(" [default: {value}]"),
    });
    let help = format!("{}{range}{}", option.help, default.unwrap_or(" [required]".into()));
    let arg = Arg::new(option.name.clone()).long(option.name.clone()).value_name(value).help(help);
    match option.kind {
        OptionKind::Bool => arg.num_args(0..=1).default_missing_value("true"),
        _ => arg.allow_hyphen_values(true),
    }
}

fn run_args(cli: &Cli) -> Option<&RunArgs> {
    match &cli.command {
        Command::Run { args, .. } | Command::Plan { args, .. } => Some(args),
        _ => None,
    }
}

/// Options that say nothing about what is computed, how far to go, and what to do with a step that cannot be computed.
const RESUMABLE: [&str; 10] =
    ["resume", "epochs", "max_steps", "skip_nonfinite", "device", "json", "plugin", "tui", "tensorboard", "until_eof"];

/// A run goes on with the options it was begun with.
fn only_resume(matches: &ArgMatches) -> Result<()> {
    let Some((_, matches)) = matches.subcommand() else { return Ok(()) };
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let other = matches.ids().map(clap::Id::as_str).find(|id| {
        // A group of arguments has the name of its type.
        given(id) && !RESUMABLE.contains(id) && !id.ends_with("Args")
    });
    match other {
        None => Ok(()),
        Some(id) => Err(Error::Usage(format!(
            "--resume goes on with the options that the run was begun with; leave out --{}",
            id.replace('_', "-")
        ))),
    }
}

/// The method's options that were given.
fn given(matches: &ArgMatches, info: &MethodInfo) -> BTreeMap<String, Given> {
    let Some((_, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let value = |name: &str| match matches.value_source(name) {
        Some(ValueSource::CommandLine) => matches.get_one::<String>(name).cloned(),
        _ => None,
    };
    info.options.iter().filter_map(|o| Some((o.name.clone(), Given::Text(value(&o.name)?)))).collect()
}

/// The values of an option, `--name VALUE` or `--name=VALUE`, before anything is parsed.
fn values(argv: &[String], name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = argv.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = rest.next() {
        if arg == name {
            found.extend(rest.next().cloned());
        } else if let Some(value) = arg.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            found.push(value.to_owned());
        }
    }
    found
}

/// Adds to an unknown option which method has it.
fn explain(mut error: clap::Error, plugins: &PluginSet, method: &str) -> clap::Error {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(owners) = owners(arg.trim_start_matches('-'), plugins, method)
    {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![owners.into()]));
    }
    error
}

/// The other methods that have an option.
fn owners(option: &str, plugins: &PluginSet, method: &str) -> Option<String> {
    let others = plugins.methods().iter().map(|method| method.info());
    let having = others.filter(|info| info.options.iter().any(|o| o.name == option));
    let names: Vec<&str> = having.map(|info| &*info.name).filter(|name| *name != method).collect();
    (!names.is_empty()).then(|| format!("`{option}` is an option of method {}, not of {method}", names.join(", ")))
}

pub fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = text.split("\n\nUsage:").next().unwrap_or(text);
    text.split("\n\nFor more information").next().unwrap_or(text).trim().to_owned()
}

/// A TOML file with options as keys.
#[derive(Default)]
struct ConfigFile {
    path: PathBuf,
    entries: toml::Table,
    /// Its key `plugin`.
    plugins: Vec<PathBuf>,
}

impl ConfigFile {
    fn read(path: &Path) -> Result<ConfigFile> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut entries: toml::Table =
            text.parse().map_err(|e| Error::Usage(format!("{}: not a TOML file: {e}", path.display())))?;
        let plugins = match entries.remove("plugin") {
            None => Vec::new(),
            Some(value) => path_list(&value).ok_or_else(|| {
                Error::Usage(format!("{}: plugin: expected a path or a list of paths, got {value}", path.display()))
            })?,
        };
        Ok(ConfigFile { path: path.to_owned(), entries, plugins })
    }

    fn get(&self, key: &str) -> Option<String> {
        self.entries.get(key).and_then(argument_value)
    }

    /// The entries as arguments.
    ///
    /// Errors: a key that is no option (names the nearest, or the method that has it), a value that is no single value.
    fn arguments(&self, command: &clap::Command, plugins: &PluginSet, method: &str) -> Result<Vec<String>> {
        let run = command.find_subcommand("run").into_iter().flat_map(clap::Command::get_arguments);
        let known: Vec<&str> = run
            .filter(|arg| arg.get_action().takes_values())
            .filter_map(clap::Arg::get_long)
            .filter(|name| !["config", "help"].contains(name))
            .collect();
        let fail = |what: String| Error::Usage(format!("{}: {what}", self.path.display()));
        let argument = |(key, value): (&String, &toml::Value)| {
            if !known.contains(&key.as_str()) {
                let hint = owners(key, plugins, method)
                    .or_else(|| nearest(key, known.iter().copied()).map(|near| format!("did you mean `{near}`?")))
                    .unwrap_or_else(|| format!("known keys: {}", known.join(", ")));
                return Err(fail(format!("unknown key `{key}`; {hint}")));
            }
            let value = argument_value(value)
                .ok_or_else(|| fail(format!("{key}: expected a text, a number, true or false, got {value}")))?;
            Ok(format!("--{key}={value}"))
        };
        self.entries.iter().map(argument).collect()
    }
}

fn path_list(value: &toml::Value) -> Option<Vec<PathBuf>> {
    match value {
        toml::Value::String(path) => Some(vec![path.into()]),
        toml::Value::Array(list) => list.iter().map(|item| item.as_str().map(PathBuf::from)).collect(),
        _ => None,
    }
}

pub fn argument_value(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Float(x) => Some(x.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

/// The entries of a table as arguments, for tables of our own.
pub fn table_arguments(table: &toml::Table) -> Vec<String> {
    table.iter().filter_map(|(key, value)| Some(format!("--{key}={}", argument_value(value)?))).collect()
}
