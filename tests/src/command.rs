//! The real binary as a child process.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `sparta-cli`, in the directory that cargo puts the test's own executable below.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let release = test.ancestors().nth(2).map(Path::to_owned).unwrap_or_default();
    let path = release.join(format!("sparta-cli{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not there; run `cargo build --release` first", path.display());
    path
}

/// The command with these arguments, with `home` as its home and current directory.
pub fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).current_dir(home).env_remove("SPARTA_PLUGIN_PATH");
    for (name, dir) in [("HOME", ""), ("XDG_CACHE_HOME", "cache"), ("XDG_DATA_HOME", "data")] {
        command.env(name, home.join(dir));
    }
    command
}
