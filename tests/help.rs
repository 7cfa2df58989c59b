//! Compares the texts of `--help` with those in `tests/help`, so a changed option shows up where users see it. Needs
//! `cargo build --release` first. `SPARTA_WRITE_HELP=1 cargo test --release --workspace --test help` updates them.

use sparta_tests::command::command;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("help")
}

/// The help of a command on a terminal of 100 columns.
fn help(words: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path(), &[words, &["--help"]].concat()).env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names in a list of commands.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

/// All commands by their words, with their help.
fn texts(words: &[&str], found: &mut Vec<(String, String)>) {
    let text = help(words);
    let below = commands(&text);
    found.push((["sparta-cli"].iter().chain(words).copied().collect::<Vec<_>>().join(" "), text));
    below.iter().for_each(|name| texts(&[words, &[name.as_str()]].concat(), found));
}

#[test]
fn every_command_explains_itself_as_it_did() {
    let mut found = Vec::new();
    texts(&[], &mut found);
    assert!(found.len() > 20, "{}", found.len());
    let file = |name: &str| directory().join(format!("{}.txt", name.replace(' ', "-")));
    if std::env::var_os("SPARTA_WRITE_HELP").is_some() {
        fs::create_dir_all(directory()).unwrap();
        found.iter().for_each(|(name, text)| fs::write(file(name), text).unwrap());
    }
    for (name, text) in &found {
        let stored = fs::read_to_string(file(name)).unwrap_or_default();
        assert!(stored == *text, "`{name} --help` is now:\n{text}\nIf that is what users should read, update it");
    }
    let known: BTreeSet<PathBuf> = found.iter().map(|(name, _)| file(name)).collect();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        assert!(known.contains(&path), "{} belongs to no command", path.display());
    }
}
