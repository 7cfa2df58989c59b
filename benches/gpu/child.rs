//! Child processes with a time limit.

use serde::de::DeserializeOwned;
use sparta_core::child;
use std::process::{Command, Stdio};
use std::time::Duration;

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
    child::lead_group(command.stdin(Stdio::null()));
    let ended = child::run(command, limit, |_| {});
    let child::Ended { status, stdout, stderr } =
        ended.map_err(|e| format!("{} cannot be started: {e}", command.get_program().display()))?;
    let texts = [&stderr, &stdout];
    let last = texts.iter().find_map(|text| text.trim().lines().last()).unwrap_or("it wrote nothing");
    let failure = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{status}: {last}")),
        None => Some(format!("ended after {:.0} s: {last}", limit.as_secs_f64())),
    };
    Ok(Child { stdout, stderr, failure })
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
