//! From arguments and configuration file to one parsed command.
//!
//! The options of `run`, `plan` and `pretrain` depend on the method and the task, whose plugins declare them, so the
//! arguments are parsed twice: first for the plugins, the method, the task, the configuration file and the preset, with
//! any option allowed; then with the options of method and task.
//! Values from the embedded job, the preset and the configuration file, each winning over those before it, become the
//! defaults of the second pass.

use crate::args::{Cli, DeviceArgs, RunArgs, ShowArgs, WatchArgs};
use crate::builtin;
use crate::default_job::DefaultJob;
use crate::logging;
use crate::presets::{self, Preset};
use clap::builder::{Resettable, ValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches};
use sparta_core::job::config::explanation;
use sparta_core::job::{Control, RunConfig};
use sparta_core::method::options::{Given, check, nearest};
use sparta_core::plugin::{DiscoverOptions, PluginKind, PluginSet};
use sparta_core::{Error, Result, files};
use sparta_plugin::method::{MethodInfo, OptionInfo, OptionKind, Options};
use sparta_plugin::task::TaskPluginInfo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The commands that train or plan training, which take the options of a method.
const JOBS: [&str; 4] = ["run", "plan", "data", "pretrain"];
/// Those that also take the options of a task.
const TASK_JOBS: [&str; 3] = ["run", "plan", "data"];
/// Those that default to the embedded model and data.
const EMBEDDED: [&str; 3] = ["run", "plan", "data"];

/// Values of options by name, as a user would write them.
pub type Values = BTreeMap<String, String>;

pub struct Parsed {
    pub cli: Cli,
    pub plugins: PluginSet,
    pub options: PluginOptions,
    /// The configuration of the run to resume, with the permitted changes applied.
    pub resumed: Option<RunConfig>,
}

/// Checked options of the plugins of one of [`JOBS`].
#[derive(Default)]
pub struct PluginOptions {
    pub method: Options,
    pub task: Options,
}

/// What `run` and `plan` have to do.
pub struct Job {
    pub args: RunArgs,
    pub options: PluginOptions,
    pub resumed: Option<RunConfig>,
}

/// Why parsing gave no command.
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
    let first = First::pass(&argv);
    logging::start(first.verbose, std::env::var(logging::VARIABLE).ok())?;
    let discover = |configured, runs: &[&Path]| {
        let run = runs.iter().flat_map(|run| RunConfig::libraries(run, first.allow_other)).collect();
        let (unneeded, allow_other) = (unneeded(first.command.as_deref()), first.allow_other);
        let standard = DiscoverOptions::standard(first.plugins.clone(), configured);
        let options = DiscoverOptions { run, allow_other, unneeded, ..standard };
        let mut plugins = PluginSet::discover(&options);
        builtin::link(&mut plugins);
        for found in plugins.report() {
            tracing::info!(
                "plugin {} {}, found by {}: {:?}",
                found.name,
                found.path.display(),
                found.origin,
                found.state
            );
        }
        // Commands that list or check plugins report broken ones themselves.
        match first.command.as_deref() {
            Some("plugins" | "plugin" | "completions") => {}
            _ => plugins.check_named(&options)?,
        }
        Ok::<_, Error>(plugins)
    };
    let Some((name, job)) = &first.job else {
        let cli = Cli::from_arg_matches(&base_command().try_get_matches_from(&argv)?)?;
        let plugins = discover(Vec::new(), &cli.command.runs())?;
        return Ok(Parsed { cli, plugins, options: PluginOptions::default(), resumed: None });
    };
    let file = job.get("config").map(|path| ConfigFile::read(Path::new(path))).transpose()?.unwrap_or_default();
    let named = |option: &str| job.get(option).cloned().or_else(|| file.get(option));
    let preset = named("preset").map(|name| presets::find(&name)).transpose()?;
    let method = match &preset {
        Some(preset) => preset.method(named("method"))?,
        None => named("method").or_else(|| default_method(name)).unwrap_or_default(),
    };
    let resume = job.get("resume").map(Path::new);
    let plugins = discover(file.plugins.clone(), resume.as_slice())?;
    let info = plugins.method(&method).map(|method| method.info().clone());
    let of_preset = || preset.as_ref().and_then(|preset| preset.values().remove("task"));
    let task = named("task").or_else(of_preset).unwrap_or_default();
    let task_info = plugins.task(&task).ok().map(|(plugin, _)| plugin.info().clone());
    let command = command(info.as_ref().ok(), task_info.as_ref())?;
    let chosen = [method.as_str(), &task];
    let parse = |command: &clap::Command, argv: &[String]| {
        command.clone().try_get_matches_from(argv).map_err(|e| explain(e, &plugins, chosen))
    };
    if first.help {
        // Help shows the options' own defaults.
        parse(&command, &argv)?;
    }
    if let Some(dir) = resume {
        let (cli, resumed) = resumed(&command, &parse(&command, &argv)?, dir, &argv)?;
        return Ok(Parsed { cli, plugins, options: PluginOptions::default(), resumed: Some(resumed) });
    }
    let file_values = file.values(&command, &plugins, chosen)?;
    // The file's values are checked first, so that an error there names the file.
    if !file_values.is_empty() {
        parse(&with_defaults(&command, &file_values), &["sparta-cli".to_owned(), "run".to_owned()])
            .map_err(|e| Error::Usage(format!("{}: {}", file.path.display(), explanation(&e))))?;
    }
    let mut defaults = preset.as_ref().map(Preset::values).unwrap_or_default();
    defaults.extend(file_values.clone());
    if EMBEDDED.contains(&name.as_str())
        && ["model", "data"].iter().all(|option| !job.contains_key(*option) && !defaults.contains_key(*option))
    {
        let mut embedded = DefaultJob::values(&method)?;
        embedded.extend(defaults);
        defaults = embedded;
    }
    let matches = parse(&with_defaults(&command, &defaults), &argv)?;
    if let Some(preset) = &preset {
        preset.check_grid(|option| job.contains_key(option) || file_values.contains_key(option))?;
    }
    let info = info.map_err(|e| Error::Usage(e.to_string()))?;
    let options = PluginOptions {
        method: check(&format!("method {method}"), &info.options, &given(&matches, &info.options))?,
        task: match &task_info {
            Some(info) => check(&format!("task {task}"), &info.options, &given(&matches, &info.options))?,
            None => Options::new(),
        },
    };
    Ok(Parsed { cli: Cli::from_arg_matches(&matches)?, plugins, options, resumed: None })
}

/// The kinds of plugins that a command does not need.
fn unneeded(command: Option<&str>) -> Vec<PluginKind> {
    match command {
        Some("report" | "rank" | "presets") => PluginKind::ALL.to_vec(),
        Some("devices" | "inspect") => vec![PluginKind::Method, PluginKind::Task],
        _ => Vec::new(),
    }
}

/// The result of the first pass, in which the options of the method are not known yet.
#[derive(Default)]
struct First {
    plugins: Vec<PathBuf>,
    command: Option<String>,
    allow_other: bool,
    verbose: u8,
    /// One of [`JOBS`], with the last value given for each option.
    job: Option<(String, Values)>,
    /// Whether help was requested.
    help: bool,
}

impl First {
    /// The first pass: accepts any value, and treats unknown options as the method's. Errors are left to the second
    /// pass.
    fn pass(argv: &[String]) -> First {
        let mut command = any_value(base_command()).mut_subcommands(any_value);
        let mut unknown: Vec<String> = Vec::new();
        let matches = loop {
            let error = match command.clone().try_get_matches_from(argv) {
                Ok(matches) => break Some(matches),
                Err(error) => error,
            };
            match unknown_option(&error).filter(|name| !unknown.contains(name)) {
                Some(name) => {
                    let arg = Arg::new(name.clone()).long(name.clone()).num_args(0..=1).allow_negative_numbers(true);
                    let add = |command: clap::Command| command.arg(arg.clone());
                    command = JOBS.iter().fold(command, |command, job| command.mut_subcommand(*job, add));
                    unknown.push(name);
                }
                None => break command.clone().ignore_errors(true).try_get_matches_from(argv).ok(),
            }
        };
        let Some(matches) = matches else { return First::default() };
        let command_name = matches.subcommand_name().map(str::to_owned);
        let plugins = matches.get_many::<String>("plugin").into_iter().flatten().map(PathBuf::from).collect();
        let job = matches.subcommand().filter(|(name, _)| JOBS.contains(name));
        let help = job.is_some_and(|(_, given)| given.get_flag("help"));
        let job = job.and_then(|(name, given)| Some((name.to_owned(), texts(command.find_subcommand(name)?, given))));
        let allow_other = matches.get_flag("allow_other_plugin");
        let verbose = matches.get_count("verbose");
        First { plugins, command: command_name, allow_other, verbose, help, job }
    }
}

/// The method of a job that names none.
fn default_method(job: &str) -> Option<String> {
    let command = base_command();
    let method = command.find_subcommand(job)?.get_arguments().find(|arg| arg.get_long() == Some("method"))?;
    Some(method.get_default_values().first()?.to_str()?.to_owned())
}

/// The command without checks, defaults and help; options take any value.
fn any_value(command: clap::Command) -> clap::Command {
    let help = Arg::new("help").long("help").short('h').action(ArgAction::SetTrue);
    let lenient = |arg: Arg| match arg.get_action().takes_values() {
        true => arg.value_parser(ValueParser::string()).default_value(Resettable::Reset).required(false),
        false => arg,
    };
    command.disable_help_flag(true).mut_args(lenient).arg(help)
}

/// The name of the unknown option that an error is about.
fn unknown_option(error: &clap::Error) -> Option<String> {
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(arg))) => arg.strip_prefix("--").map(str::to_owned),
        _ => None,
    }
}

/// The last value of each option on the command line.
fn texts(command: &clap::Command, matches: &ArgMatches) -> Values {
    let value = |arg: &Arg| {
        let mut texts = matches.try_get_many::<String>(arg.get_id().as_str()).ok().flatten()?;
        Some((arg.get_long()?.to_owned(), texts.next_back().cloned().unwrap_or_default()))
    };
    command.get_arguments().filter(|arg| arg.get_action().takes_values()).filter_map(value).collect()
}

/// The command with these values as defaults of the options of [`JOBS`].
fn with_defaults(command: &clap::Command, values: &Values) -> clap::Command {
    let default = |arg: Arg| match arg.get_long().and_then(|name| values.get(name)) {
        Some(value) => arg.default_value(value.clone()),
        None => arg,
    };
    JOBS.iter().fold(command.clone(), |command, job| command.mut_subcommand(*job, |c| c.mut_args(default)))
}

/// The configuration of the run in `dir`, with the requested changes.
///
/// Errors: no run there; an option that cannot change after the start.
fn resumed(
    command: &clap::Command,
    matches: &ArgMatches,
    dir: &Path,
    argv: &[String],
) -> std::result::Result<(Cli, RunConfig), Stop> {
    let run = Control::augment_args(clap::Command::new("run"));
    let free = ShowArgs::augment_args(WatchArgs::augment_args(DeviceArgs::augment_args(run)));
    let is_free = |id: &str| {
        ["resume", "plugin", "allow_other_plugin", "what"].contains(&id)
            || free.get_arguments().any(|arg| arg.get_id() == id)
    };
    let Some((job, given)) = matches.subcommand() else {
        return Err(Error::Usage("--resume is an option of `run` and `plan`".into()).into());
    };
    let options = command.find_subcommand(job).into_iter().flat_map(clap::Command::get_arguments);
    let mut fixed = options.filter(|arg| !is_free(arg.get_id().as_str()));
    if let Some(arg) = fixed.find(|arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)) {
        return Err(Stop::Error(Error::Usage(format!(
            "--resume continues with the options that the run was started with; leave out --{}",
            arg.get_long().unwrap_or_default()
        ))));
    }
    let no_default = |arg: Arg| match arg.get_action().takes_values() {
        true => arg.default_value(Resettable::Reset),
        false => arg,
    };
    let no_defaults = command.clone().mut_subcommand(job, |c| c.mut_args(no_default));
    let changes = no_defaults.try_get_matches_from(argv)?;
    let mut config = RunConfig::of_run(dir)?;
    if let Some((_, changes)) = changes.subcommand() {
        config.control.update_from_arg_matches(changes)?;
    }
    Ok((Cli::from_arg_matches(matches)?, config))
}

/// The command without options of plugins.
pub fn base_command() -> clap::Command {
    // A negative number is a wrong value of an option, not an unknown option.
    let numbers = |arg: Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
    let command = Cli::command();
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |c| c.mut_args(numbers)))
}

/// [`base_command`] with the options of a method and of a task.
///
/// Errors: an option of a plugin has the name of another option.
pub fn command(method: Option<&MethodInfo>, task: Option<&TaskPluginInfo>) -> Result<clap::Command> {
    let mut command = base_command();
    for subcommand in JOBS {
        if let Some(method) = method {
            command = with_options(command, subcommand, &format!("method {}", method.name), &method.options)?;
            let lr = format!("Peak learning rate [default: {:e}, that of method {}]", method.default_lr, method.name);
            // `pretrain` has its own default.
            let is_lr = |arg: &Arg| arg.get_id() == "lr" && arg.get_default_values().is_empty();
            let default_lr = |arg: Arg| if is_lr(&arg) && !method.name.is_empty() { arg.help(lr.clone()) } else { arg };
            command = command.mut_subcommand(subcommand, |c| c.after_help(method.summary.clone()).mut_args(default_lr));
        }
        if let Some(task) = task.filter(|_| TASK_JOBS.contains(&subcommand)) {
            command = with_options(command, subcommand, &format!("task {}", task.name), &task.options)?;
        }
    }
    Ok(command)
}

/// The command with the options of a plugin on a subcommand.
///
/// Errors: one of them has the name of another option.
fn with_options(
    command: clap::Command,
    subcommand: &str,
    owner: &str,
    options: &[OptionInfo],
) -> Result<clap::Command> {
    for option in options {
        let own = command.find_subcommand(subcommand).into_iter().flat_map(clap::Command::get_arguments);
        if own.chain(command.get_arguments()).any(|arg| arg.get_long() == Some(&option.name)) {
            return Err(Error::Plugin(format!(
                "{owner}: its option --{} has the name of another option of `{subcommand}`; rename it",
                option.name
            )));
        }
    }
    let heading = format!("Options of {owner}");
    let args: Vec<Arg> = options.iter().map(|option| plugin_arg(option).help_heading(heading.clone())).collect();
    Ok(command.mut_subcommand(subcommand, |c| c.args(args)))
}

/// [`command`] with the options of all methods and tasks, each name once.
pub fn command_of_all_plugins(plugins: &PluginSet) -> clap::Command {
    fn add(all: &mut Vec<OptionInfo>, taken: &[OptionInfo], options: &[OptionInfo]) {
        for option in options {
            if taken.iter().chain(&*all).all(|known| known.name != option.name) {
                all.push(option.clone());
            }
        }
    }
    let (name, version, summary) = (String::new(), String::new(), String::new());
    let mut method = MethodInfo { name, version, summary, options: Vec::new(), default_lr: 0.0 };
    plugins.methods().iter().for_each(|plugin| add(&mut method.options, &[], &plugin.info().options));
    let (name, version) = (String::new(), String::new());
    let mut task = TaskPluginInfo { name, version, tasks: Vec::new(), options: Vec::new() };
    plugins.tasks().iter().for_each(|plugin| add(&mut task.options, &method.options, &plugin.info().options));
    command(Some(&method), Some(&task)).unwrap_or_else(|_| base_command())
}

fn plugin_arg(option: &OptionInfo) -> Arg {
    let (value, range) = match &option.kind {
        OptionKind::Float { min, max, min_open } => {
            ("X", format!(" [from {}{min} to {max}]", if *min_open { "above " } else { "" }))
        }
        OptionKind::Int { min, max } => ("N", format!(" [from {min} to {max}]")),
        OptionKind::Bool => ("BOOL", String::new()),
        OptionKind::Text => ("TEXT", String::new()),
    };
    let default = option.default.as_ref().map(|value| match value.as_str() {
        Some("") => String::new(),
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

/// The options of a plugin that were given on the command line, in the file or by the preset.
fn given(matches: &ArgMatches, options: &[OptionInfo]) -> BTreeMap<String, Given> {
    let Some((_, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let value = |name: &str| matches.try_get_one::<String>(name).ok().flatten().cloned();
    options.iter().filter_map(|o| Some((o.name.clone(), Given::Text(value(&o.name)?)))).collect()
}

/// Adds to the error for an unknown option which other method or task has it.
fn explain(mut error: clap::Error, plugins: &PluginSet, chosen: [&str; 2]) -> clap::Error {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(owners) = owners(arg.trim_start_matches('-'), plugins, chosen)
    {
        // A similar option of the chosen method would be a misleading suggestion.
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![owners.into()]));
    }
    error
}

/// The methods, or else the tasks, other than the chosen ones, that have an option.
fn owners(option: &str, plugins: &PluginSet, [method, task]: [&str; 2]) -> Option<String> {
    let has = |options: &[OptionInfo]| options.iter().any(|o| o.name == option);
    let methods = plugins.methods().iter().map(|method| method.info()).filter(|info| has(&info.options));
    let methods: Vec<&str> = methods.map(|info| &*info.name).filter(|name| *name != method).collect();
    if !methods.is_empty() {
        return Some(format!("`{option}` is an option of method {}, not of {method}", methods.join(", ")));
    }
    let tasks = plugins.tasks().iter().map(|plugin| plugin.info()).filter(|info| has(&info.options));
    let tasks: Vec<&str> = tasks.flat_map(|info| &info.tasks).map(|info| &*info.id).filter(|id| *id != task).collect();
    let other = if task.is_empty() { "; see --task".to_owned() } else { format!(", not of {task}") };
    (!tasks.is_empty()).then(|| format!("`{option}` is an option of task {}{other}", tasks.join(", ")))
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
        let text = files::read_text(path, files::CONFIGURATION).map_err(Error::io(path))?;
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

    /// The entries as values of options.
    ///
    /// Errors: an unknown key, with the nearest one, or the method or task that has it; a value of the wrong kind.
    fn values(&self, command: &clap::Command, plugins: &PluginSet, chosen: [&str; 2]) -> Result<Values> {
        let run = command.find_subcommand("run").into_iter().flat_map(clap::Command::get_arguments);
        let options: Vec<(&str, &Arg)> = run
            .filter(|arg| arg.get_action().takes_values())
            .filter_map(|arg| Some((arg.get_long()?, arg)))
            .filter(|(name, _)| !["config", "resume"].contains(name))
            .collect();
        let known = || options.iter().map(|(name, _)| *name);
        let fail = |what: String| Error::Usage(format!("{}: {what}", self.path.display()));
        let entry = |(key, value): (&String, &toml::Value)| {
            let Some((_, arg)) = options.iter().find(|(name, _)| name == key) else {
                let hint = owners(key, plugins, chosen)
                    .or_else(|| nearest(key, known()).map(|near| format!("did you mean `{near}`?")))
                    .unwrap_or_else(|| format!("known keys: {}", known().collect::<Vec<_>>().join(", ")));
                return Err(fail(format!("unknown key `{key}`; {hint}")));
            };
            let value = argument_value(value)
                .or_else(|| list_value(value, arg.get_value_delimiter()?))
                .ok_or_else(|| fail(format!("{key}: expected a string, a number, true or false, got {value}")))?;
            Ok((key.clone(), value))
        };
        self.entries.iter().map(entry).collect()
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

/// A list as the value of an option that takes several, separated by `delimiter`.
fn list_value(value: &toml::Value, delimiter: char) -> Option<String> {
    let items: Option<Vec<String>> = value.as_array()?.iter().map(argument_value).collect();
    Some(items?.join(&delimiter.to_string()))
}

/// The entries of a table as values of options, for embedded tables.
pub fn table_values(table: &toml::Table) -> Values {
    table.iter().filter_map(|(key, value)| Some((key.clone(), argument_value(value)?))).collect()
}
