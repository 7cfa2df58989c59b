//! `sparta-cli plugin new`: a crate, or a directory in C, that builds and passes `plugin check` as it is.

use super::install::KINDS;
use crate::output;
use clap::Args;
use sparta_core::job::config::one_of;
use sparta_core::plugin::PluginKind;
use sparta_core::{Error, Result, files};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct NewArgs {
    /// Directory to create; its last part names the crate and the plugin
    #[arg(value_name = "NAME")]
    path: PathBuf,
    /// Kind of plugin to create; there is no scaffold for a communicator
    #[arg(long, value_name = "KIND", value_parser = one_of(KINDS))]
    kind: PluginKind,
    /// Language
    #[arg(long, value_name = "LANG", default_value = "rust", value_parser = one_of(LANGUAGES))]
    lang: Language,
    /// Directory of the SDK to depend on, plugins/sdk of the repository; required for a backend
    /// [default: the published version]
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum Language {
    Rust,
    C,
}

const LANGUAGES: &[(&str, Language)] = &[("rust", Language::Rust), ("c", Language::C)];

/// The version of the SDK that this program was built with, as a crate's manifest states it.
const SDK_VERSION: &str = "0.1";

const LINES: &str = include_str!("../../assets/plugin/lines.tsv");

/// Files of a scaffold, with placeholders for names.
type Files = Vec<(&'static str, &'static str)>;

fn files_of(kind: PluginKind, lang: Language) -> Result<Files> {
    let crate_of = |source| {
        vec![
            ("Cargo.toml", include_str!("../../assets/plugin/manifest.toml")),
            (".gitignore", include_str!("../../assets/plugin/gitignore")),
            ("src/lib.rs", source),
        ]
    };
    let directory_of = |source| {
        vec![
            ("Makefile", include_str!("../../assets/plugin/Makefile")),
            (".gitignore", include_str!("../../assets/plugin/gitignore")),
            ("plugin.c", source),
            ("sparta_plugin.h", include_str!("../../../plugins/sdk/include/sparta_plugin.h")),
        ]
    };
    let mut all = match (kind, lang) {
        (PluginKind::Method, Language::Rust) => crate_of(include_str!("../../assets/plugin/method/lib.rs")),
        (PluginKind::Task, Language::Rust) => crate_of(include_str!("../../assets/plugin/task/lib.rs")),
        (PluginKind::Backend, Language::Rust) => crate_of(include_str!("../../assets/plugin/backend/lib.rs")),
        (PluginKind::Method, Language::C) => directory_of(include_str!("../../assets/plugin/method-c/plugin.c")),
        (PluginKind::Task, Language::C) => directory_of(include_str!("../../assets/plugin/task-c/plugin.c")),
        (PluginKind::Communicator, _) => {
            return Err(Error::Usage(
                "there is no scaffold for a communicator; start from plugins/comm-mpi in the repository, or write the \
                 SpartaCommunicator of sparta_plugin.h"
                    .into(),
            ));
        }
        (PluginKind::Backend, Language::C) => {
            return Err(Error::Usage(
                "there is no scaffold for a backend in C, which would start every operation from scratch; use --lang \
                 rust, which starts from the CPU backend, or implement SpartaBackend of sparta_plugin.h"
                    .into(),
            ));
        }
    };
    if kind == PluginKind::Task {
        all.extend(["data/train.tsv", "data/dev.tsv", "data/test.tsv"].map(|path| (path, LINES)));
    }
    Ok(all)
}

/// Errors: an invalid name; a path that already exists or cannot be written; no SDK at the given path, or none given for a
/// backend.
pub fn new(args: &NewArgs) -> Result<()> {
    let name = args.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    check_name(name)?;
    if fs::symlink_metadata(&args.path).is_ok() {
        return Err(Error::Usage(format!("{}: it already exists; give another name", args.path.display())));
    }
    let contents = files_of(args.kind, args.lang)?;
    let dependencies = dependencies(args)?;
    let filled = |text: &str| {
        let text = text.replace("@name@", name).replace("@file@", &name.replace('-', "_"));
        text.replace("@type@", &type_name(name)).replace("@dependencies@", &dependencies)
    };
    let parent = args.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    files::create_dirs(parent).map_err(Error::io(parent))?;
    let scaffold = tempfile::tempdir_in(parent).map_err(Error::io(parent))?;
    for (path, text) in contents {
        let path = scaffold.path().join(path);
        let directory = path.parent().unwrap_or(scaffold.path());
        files::create_dirs(directory).map_err(Error::io(directory))?;
        fs::write(&path, filled(text)).map_err(Error::io(&path))?;
    }
    open_to_all(scaffold.path())?;
    files::publish(scaffold.path(), &args.path).map_err(Error::io(&args.path))?;
    // It has been moved away.
    let _ = scaffold.keep();
    explain(args, name)
}

/// Opens a temporary directory, which only its owner can enter, to everybody.
fn open_to_all(directory: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory, all).map_err(Error::io(directory))?;
    }
    #[cfg(not(unix))]
    let _ = directory;
    Ok(())
}

/// Checks a name, which a crate, a library and a plugin will have.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-') && name.len() <= 64;
    // Names that Rust reserves.
    let taken = ["test", "core", "std", "alloc", "self", "super", "crate"].contains(&name);
    match fits && !taken && name.chars().all(good) {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{name:?} cannot be the name of a plugin; expected a lower-case letter and then letters, digits and -, for example my-method"
        ))),
    }
}

/// `my-method` as `MyMethod`.
fn type_name(name: &str) -> String {
    let capital = |word: &str| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect();
    name.split('-').map(capital).collect::<Vec<String>>().concat()
}

/// The dependencies in the crate's manifest.
fn dependencies(args: &NewArgs) -> Result<String> {
    let mut crates = vec![("sparta-plugin", "sdk")];
    if args.kind == PluginKind::Backend {
        crates.push(("sparta-backend-cpu", "backend-cpu"));
    }
    let Some(sdk) = &args.sdk else {
        return match args.kind {
            PluginKind::Backend => Err(Error::Usage(
                "a new backend starts from the crate sparta-backend-cpu, which is not published; give --sdk PATH, the \
                 directory plugins/sdk of the repository, which has the crate beside it"
                    .into(),
            )),
            _ => Ok(format!("sparta-plugin = \"{SDK_VERSION}\"")),
        };
    };
    let sdk = sdk.canonicalize().map_err(Error::io(sdk))?;
    let mut lines = Vec::new();
    for (name, directory) in crates {
        let path = sdk.with_file_name(directory);
        let path = if directory == "sdk" { &sdk } else { &path };
        if !path.join("Cargo.toml").is_file() {
            return Err(Error::Usage(format!(
                "--sdk: {} is not a crate, expected {name}; give plugins/sdk of the repository",
                path.display()
            )));
        }
        let path = path.to_str().ok_or_else(|| Error::Usage(format!("--sdk: {path:?} is not UTF-8")))?;
        lines.push(format!("{name} = {{ path = {} }}", toml::Value::String(path.to_owned())));
    }
    Ok(lines.join("\n"))
}

/// Prints what to do next.
fn explain(args: &NewArgs, name: &str) -> Result<()> {
    let path = args.path.display();
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let (file, data) = (name.replace('-', "_"), if args.kind == PluginKind::Task { " --data data" } else { "" });
    let (build, library) = match args.lang {
        Language::Rust => ("cargo build --release", format!("target/release/{prefix}{file}{suffix}")),
        Language::C => ("make", format!("./{file}{suffix}")),
    };
    output::print(format!(
        "made {path}; next:\n  cd {path}\n  {build}\n  sparta-cli plugin check {library}{data}\n  sparta-cli plugin install {library}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_types_and_are_checked() {
        assert_eq!((type_name("my-method"), type_name("x2")), ("MyMethod".into(), "X2".into()));
        check_name("my-method2").unwrap();
        for bad in ["", "My", "2x", "a b", "a_b", "a-", "core", "../x", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for (kind, lang) in [
            (PluginKind::Method, Language::Rust),
            (PluginKind::Method, Language::C),
            (PluginKind::Task, Language::Rust),
            (PluginKind::Task, Language::C),
            (PluginKind::Backend, Language::Rust),
        ] {
            for (path, text) in files_of(kind, lang).unwrap() {
                let known = ["@name@", "@file@", "@type@", "@dependencies@"];
                let rest = known.iter().fold(text.to_owned(), |text, place| text.replace(place, ""));
                // `$@` is make's.
                assert!(!rest.replace("$@", "").contains('@'), "{path}");
            }
        }
        assert!(files_of(PluginKind::Backend, Language::C).is_err());
    }
}
