//! One part of a check, in a child process.

use crate::progress::INTERRUPTED;
use sparta_core::{Error, Result, child};
use std::ffi::OsString;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Prefixes of the lines that a child prints about a test that did not fail.
pub const REFUSED: &str = "refused: ";
pub const SKIPPED: &str = "skipped: ";
pub const NOTE: &str = "note: ";

/// When the standard input of a child ends.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// With the child.
    Open,
    /// At once.
    Closed,
    /// When this file exists.
    Until(&'a Path),
}

/// A child process that has ended.
pub struct Ended {
    /// `None` if it was killed at its time limit.
    pub status: Option<ExitStatus>,
    pub seconds: f64,
    pub stdout: String,
    pub stderr: String,
}

/// Runs this program with these arguments, for at most `limit` seconds; then it is killed, along with everything it has
/// started.
///
/// Errors: it cannot be started.
pub fn run(arguments: &[OsString], limit: u64, input: Input) -> Result<Ended> {
    let program = std::env::current_exe().map_err(Error::io("sparta-cli"))?;
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::piped());
    // The runs of a test stay in its group, so that its time limit is also theirs.
    if std::env::args_os().all(|argument| argument != "--child") {
        child::lead_group(&mut command);
        end_with_interrupt();
    }
    let close = |stdin: &mut Option<ChildStdin>| match input {
        Input::Closed => *stdin = None,
        Input::Until(file) if file.exists() => *stdin = None,
        Input::Open | Input::Until(_) => {}
    };
    let start = Instant::now();
    let ended = child::run(&mut command, Duration::from_secs(limit), close).map_err(Error::io(&program))?;
    let child::Ended { status, stdout, stderr } = ended;
    Ok(Ended { status, seconds: start.elapsed().as_secs_f64(), stdout, stderr })
}

/// Makes Ctrl-C end the child, too, whose group it does not reach.
fn end_with_interrupt() {
    // An error means that a handler is already installed: this one.
    let _ = ctrlc::set_handler(|| {
        child::end_all();
        std::process::exit(INTERRUPTED.into());
    });
}

impl Ended {
    pub fn passed(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its remarks on a test that did not fail.
    pub fn said(&self) -> String {
        let marked = |line: &&str| [REFUSED, SKIPPED, NOTE].iter().any(|mark| line.starts_with(mark));
        let lines: Vec<&str> = self.stdout.lines().filter(marked).map(|line| line.trim_start_matches(NOTE)).collect();
        lines.join("\n")
    }

    /// Why it failed. For a crash or a hang, which leave no message, this names the last case that was begun.
    pub fn why(&self, limit: u64) -> String {
        let last = self.stdout.trim().lines().last().unwrap_or("loading the library");
        let message = self.stderr.trim().trim_start_matches("error: ");
        match self.status {
            None => format!("did not end within {limit} s; it was at: {last}"),
            Some(status) if matches!(status.code(), Some(1 | 2)) => message.to_owned(),
            Some(status) => format!("{status} at: {last}\n{message}").trim_end().to_owned(),
        }
    }
}
