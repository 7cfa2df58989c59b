//! One part of a check, in a child process.

use sparta_core::{Error, Result};
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Prefixes of the lines that a child prints about a test that did not fail.
pub const REFUSED: &str = "refused: ";
pub const SKIPPED: &str = "skipped: ";
pub const NOTE: &str = "note: ";

/// Interval at which a child is polled.
const POLL: Duration = Duration::from_millis(10);

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

/// Runs this program with these arguments, for at most `limit` seconds.
///
/// Errors: it cannot be started.
pub fn run(arguments: &[OsString], limit: u64, input: Input) -> Result<Ended> {
    let program = std::env::current_exe().map_err(Error::io("sparta-cli"))?;
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(Error::io(&program))?;
    let mut stdin = child.stdin.take().filter(|_| !matches!(input, Input::Closed));
    let poll = || {
        if let Input::Until(file) = input
            && file.exists()
        {
            stdin = None;
        }
    };
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child, start + Duration::from_secs(limit), poll).map_err(Error::io(&program))?;
    drop(stdin);
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Ended { status, seconds: start.elapsed().as_secs_f64(), stdout: text(stdout), stderr: text(stderr) })
}

/// `None`: the child did not end in time and was killed.
fn wait(child: &mut Child, end: Instant, mut poll: impl FnMut()) -> std::io::Result<Option<ExitStatus>> {
    loop {
        poll();
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            // It may have ended just now.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = vec![];
        // Output read before an error is kept.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
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
