//! Child processes with a time limit.

use std::io::{self, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Interval at which a child is polled.
const POLL: Duration = Duration::from_millis(10);

/// The children that have not been waited for: after that, their numbers may be other processes'.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A process that has ended.
pub struct Ended {
    /// `None` if it was killed at its time limit.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
}

/// Puts a command into a process group of its own, so that what it has started is killed with it. In a terminal, Ctrl-C
/// does not reach that group: see [`end_all`].
pub fn lead_group(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

/// Runs a command for at most `limit`; then it is killed, with its group if it leads one. Until then, `meanwhile` is
/// called at short intervals with its standard input, if that is a pipe, and may close it.
///
/// Errors: it cannot be started or waited for.
pub fn run(
    command: &mut Command,
    limit: Duration,
    mut meanwhile: impl FnMut(&mut Option<ChildStdin>),
) -> io::Result<Ended> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = start(command)?;
    let mut stdin = child.stdin.take();
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = loop {
        meanwhile(&mut stdin);
        match ended(&mut child)? {
            Some(status) => break Some(status),
            None if begin.elapsed() > limit => {
                kill(&mut child)?;
                break None;
            }
            None => thread::sleep(POLL),
        }
    };
    let text = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Ended { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Kills the groups of all children that lead one, for a program that ends before they do.
pub fn end_all() {
    running().iter().for_each(|&child| end_group(child));
}

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(command: &mut Command) -> io::Result<Child> {
    let mut all = running();
    let child = command.spawn()?;
    all.push(child.id());
    Ok(child)
}

/// How a child has ended, if it has.
fn ended(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let mut all = running();
    let status = child.try_wait()?;
    if status.is_some() {
        all.retain(|&other| other != child.id());
    }
    Ok(status)
}

fn kill(child: &mut Child) -> io::Result<()> {
    end_group(child.id());
    // It may have just ended by itself.
    let _ = child.kill();
    running().retain(|&other| other != child.id());
    child.wait().map(drop)
}

/// Ends the processes of a child's group, any of which may keep its pipes open. The child must not have been waited
/// for.
#[cfg(unix)]
fn end_group(child: u32) {
    // Every system's shell has a built-in `kill`. Without one, only the child ends.
    let mut kill = Command::new("sh");
    let _ = kill.args(["-c", "kill -s KILL -- -$0", &child.to_string()]).stderr(Stdio::null()).status();
}

#[cfg(not(unix))]
fn end_group(_: u32) {}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = vec![];
        // What was read before an error is kept.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_has_started_ends_with_it() {
        let mut command = Command::new("sh");
        lead_group(command.args(["-c", "sleep 1000 & wait"]));
        // It returns only when no process has the pipes.
        assert!(run(&mut command, Duration::from_millis(300), |_| {}).unwrap().status.is_none());
    }

    #[test]
    fn a_child_may_wait_for_its_input_to_end() {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped());
        let ended = run(&mut command, Duration::from_secs(60), |stdin| *stdin = None).unwrap();
        assert!(ended.status.is_some_and(|status| status.success()));
        assert_eq!((&*ended.stdout, &*ended.stderr), ("", ""));
    }
}
