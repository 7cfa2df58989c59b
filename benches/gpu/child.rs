//! Child processes with a time limit.

use serde::de::DeserializeOwned;
use std::io::Read;
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A process that has ended.
pub struct Child {
    pub stdout: String,
    pub stderr: String,
    /// What went wrong, with the last line of the process; `None` if it was successful.
    pub failure: Option<String>,
}

/// Runs a command for at most `limit`; then it is killed, along with everything it has started.
///
/// Errors: it cannot be started or waited for.
pub fn run(command: &mut Command, limit: Duration) -> Result<Child, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    command.process_group(0);
    let mut child =
        command.spawn().map_err(|e| format!("{} cannot be started: {e}", command.get_program().display()))?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                end_group(child.id());
                // It may have just ended by itself.
                let _ = child.kill();
                child.wait().map_err(|e| e.to_string())?;
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    let texts = [&stderr, &stdout];
    let last = texts.iter().find_map(|text| text.trim().lines().last()).unwrap_or("it wrote nothing");
    let failure = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{status}: {last}")),
        None => Some(format!("ended after {:.0} s: {last}", limit.as_secs_f64())),
    };
    Ok(Child { stdout, stderr, failure })
}

/// Ends the processes of a child's group, any of which may keep its pipes open. The child must not have been waited
/// for, or its number may already be another process's.
#[cfg(unix)]
fn end_group(child: u32) {
    // Every system's shell has a built-in `kill`. Without one, only the child ends.
    let mut kill = Command::new("sh");
    let _ = kill.args(["-c", "kill -s KILL -- -$0", &child.to_string()]).stderr(Stdio::null()).status();
}

#[cfg(not(unix))]
fn end_group(_: u32) {}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = vec![];
        // What was read before an error is kept.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Child {
    /// Errors: what went wrong.
    pub fn success(self) -> Result<Child, String> {
        match self.failure {
            Some(why) => Err(why),
            None => Ok(self),
        }
    }

    pub fn last_line_as_json<T: DeserializeOwned>(&self) -> Result<T, String> {
        let line = self.stdout.trim().lines().last().unwrap_or_default();
        serde_json::from_str(line).map_err(|e| format!("its answer cannot be read: {e}: {line}"))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_has_started_ends_with_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]);
        let child = run(&mut command, Duration::from_millis(300)).unwrap();
        assert_eq!(child.failure.as_deref(), Some("ended after 0 s: it wrote nothing"));
    }
}
