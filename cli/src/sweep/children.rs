//! Runs as child processes, a few at a time.
//!
//! A child stops cleanly when its standard input closes. That also covers a sweep that is killed, and needs no signals,
//! which differ between systems.

use super::definition::EarlyStop;
use super::state::{Ended, Job, State};
use crate::output::Output;
use crate::progress::{INTERRUPTED, interrupted};
use sparta_core::job::{RunResult, Stopped};
use sparta_core::{Error, Result, files};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Interval at which the children are polled.
const POLL: Duration = Duration::from_millis(50);

/// Interval at which their metrics are read.
const REVIEW: Duration = Duration::from_secs(1);

pub struct Runner<'a> {
    pub jobs: &'a [Job],
    pub output: Output,
    /// One device per concurrent run.
    pub devices: Vec<String>,
    /// `--plugin` and the like, for the runs.
    pub plugin_options: Vec<String>,
    pub early_stop: Option<EarlyStop>,
    /// Whether failed runs are repeated.
    pub retry: bool,
}

struct Active {
    /// Position in `jobs`.
    job: usize,
    /// Position in `devices`.
    slot: usize,
    child: Child,
    /// Why it is being stopped.
    hopeless: Option<String>,
}

impl Runner<'_> {
    /// Runs all unfinished jobs. A failure is recorded, and the others continue; after Ctrl-C the children save their
    /// state and end.
    ///
    /// Errors: a directory that cannot be read or written; a child that cannot be started.
    pub fn run(&self) -> Result<()> {
        let mut waiting = self.waiting()?;
        let mut active: Vec<Active> = Vec::new();
        let mut reviewed = Instant::now();
        while !active.is_empty() || (!waiting.is_empty() && !interrupted()) {
            while !interrupted()
                && let Some(slot) = (0..self.devices.len()).find(|slot| active.iter().all(|a| a.slot != *slot))
                && let Some(job) = waiting.pop_front()
            {
                active.push(Active { job, slot, child: self.start(job, slot)?, hopeless: None });
            }
            let mut running = Vec::new();
            for mut one in active {
                match one.child.try_wait().map_err(Error::io(self.jobs[one.job].log()))? {
                    Some(status) => self.conclude(&one, status)?,
                    None => running.push(one),
                }
            }
            active = running;
            if reviewed.elapsed() >= REVIEW {
                reviewed = Instant::now();
                active.iter_mut().filter(|one| one.hopeless.is_none()).for_each(|one| self.review(one));
            }
            if interrupted() {
                active.iter_mut().for_each(|one| drop(one.child.stdin.take()));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn waiting(&self) -> Result<VecDeque<usize>> {
        let mut waiting = VecDeque::new();
        for (index, job) in self.jobs.iter().enumerate() {
            match job.state()? {
                State::New | State::Begun { .. } => waiting.push_back(index),
                State::Failed(_) if self.retry => {
                    job.record(None)?;
                    waiting.push_back(index);
                }
                State::Finished(_) | State::Failed(_) | State::StoppedEarly(_) => {}
            }
        }
        let done = self.jobs.len() - waiting.len();
        if done > 0 {
            self.output.say(format!("{done} of {} runs are already done", self.jobs.len()))?;
        }
        Ok(waiting)
    }

    fn start(&self, index: usize, slot: usize) -> Result<Child> {
        let job = &self.jobs[index];
        let state = job.state()?;
        if matches!(state, State::Begun { checkpoint: false }) {
            // It has no checkpoint to resume from.
            fs::remove_dir_all(&job.directory).map_err(Error::io(&job.directory))?;
        }
        files::create_dirs(&job.directory).map_err(Error::io(&job.directory))?;
        job.record(None)?;
        let log = File::options().create(true).append(true).open(job.log()).map_err(Error::io(job.log()))?;
        let program = std::env::current_exe().map_err(Error::io("sparta-cli"))?;
        let mut command = Command::new(&program);
        command.args(&self.plugin_options);
        command.arg("run").arg("--until-eof").arg("--json").arg(format!("--device={}", self.devices[slot]));
        let verb = match state {
            State::Begun { checkpoint: true } => {
                command.arg("--resume").arg(&job.directory);
                "resume"
            }
            _ => {
                command.arg("--out").arg(&job.directory);
                command.args(job.options.iter().map(|(key, value)| format!("--{key}={value}")));
                "start "
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.output.say(format!("{verb}  {}  {}  {}", job.name, job.row, job.setting).trim_end())?;
        command.spawn().map_err(Error::io(program))
    }

    /// Records how a child ended.
    fn conclude(&self, one: &Active, status: ExitStatus) -> Result<()> {
        let job = &self.jobs[one.job];
        let path = job.directory.join("result.json");
        let stored = files::read_text(&path, files::CONFIGURATION).ok();
        let stored = stored.and_then(|text| serde_json::from_str::<RunResult>(&text).ok());
        let ended_well = status.success() || status.code() == Some(INTERRUPTED.into());
        let line = match (ended_well, stored, &one.hopeless) {
            (true, Some(result), _) if result.stopped != Stopped::Interrupted => {
                format!("done    {}  {}", job.name, brief(&result, &job.metric()))
            }
            (true, _, Some(why)) => {
                job.record(Some(Ended::StoppedEarly(why.clone())))?;
                format!("stopped {}  {why}", job.name)
            }
            _ if interrupted() => format!("ended   {}  to be resumed", job.name),
            (true, ..) => return self.fail(job, "it was interrupted from outside; --retry resumes it".into()),
            (false, ..) => return self.fail(job, complaint(job, status)),
        };
        self.output.say(line)
    }

    fn fail(&self, job: &Job, message: String) -> Result<()> {
        self.output.say(format!("failed  {}  {message}", job.name))?;
        job.record(Some(Ended::Failed(message)))
    }

    /// Stops a run that is below the median of its peers, by the sweep's rule.
    fn review(&self, one: &mut Active) {
        let Some(rule) = self.early_stop else { return };
        let job = &self.jobs[one.job];
        let peers = self.jobs.iter().enumerate().filter(|(index, _)| *index != one.job);
        let peers = peers.filter(|(_, peer)| peer.row == job.row && peer.task == job.task);
        let peers: Vec<_> = peers.map(|(_, peer)| peer.evaluations()).collect();
        one.hopeless = hopeless(rule, &job.evaluations(), &peers);
        if one.hopeless.is_some() {
            drop(one.child.stdin.take());
        }
    }
}

/// Why a run should be stopped, judging by its evaluations, `(step, metric)`, and those of its peers.
fn hopeless(rule: EarlyStop, own: &[(usize, f64)], peers: &[Vec<(usize, f64)>]) -> Option<String> {
    let &(step, _) = own.last().filter(|_| own.len() >= rule.after.max(1))?;
    let best = |evaluations: &[(usize, f64)]| {
        let until = evaluations.iter().filter(|(at, _)| *at <= step).map(|(_, metric)| *metric);
        until.max_by(f64::total_cmp)
    };
    let as_far = peers.iter().filter(|peer| peer.last().is_some_and(|(at, _)| *at >= step));
    let mut bests: Vec<f64> = as_far.filter_map(|peer| best(peer)).collect();
    if bests.is_empty() || bests.len() < rule.runs {
        return None;
    }
    bests.sort_by(f64::total_cmp);
    let middle = bests.len() / 2;
    let median = if bests.len() % 2 == 1 { bests[middle] } else { (bests[middle - 1] + bests[middle]) / 2.0 };
    let own = best(own)?;
    (own < median).then(|| format!("at step {step} its best is {own:.4} on dev, below the median {median:.4}"))
}

fn brief(result: &RunResult, primary: &str) -> String {
    let dev = result.dev.as_ref().and_then(|dev| dev.scores.get(primary));
    let dev = dev.map(|value| format!("dev {primary} {value:.4}, ")).unwrap_or_default();
    format!("{dev}{} steps in {:.1} s", result.steps, result.training_seconds)
}

/// The last error that a child printed.
fn complaint(job: &Job, status: ExitStatus) -> String {
    let log = files::read(&job.log(), files::LOG).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    match log.rfind("\nerror: ").map(|at| at + 1).or_else(|| log.starts_with("error: ").then_some(0)) {
        Some(at) => log[at..].trim_start_matches("error: ").trim().to_owned(),
        None => format!("{status}; see the end of {}", job.log().display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_below_the_median_of_its_peers_is_hopeless() {
        let rule = EarlyStop { after: 2, runs: 3 };
        let peer = |metric| vec![(10, metric - 0.1), (20, metric), (30, 0.99)];
        let peers = [peer(0.6), peer(0.7), peer(0.8)];
        let stops = |own: &[(usize, f64)], peers: &[_]| hopeless(rule, own, peers).is_some();
        assert!(stops(&[(10, 0.5), (20, 0.69)], &peers));
        // As good as the median; better before; too young; too few peers; peers that have not come as far.
        assert!(!stops(&[(10, 0.5), (20, 0.7)], &peers));
        assert!(!stops(&[(10, 0.75), (20, 0.5)], &peers));
        assert!(!stops(&[(10, 0.1)], &peers));
        assert!(!stops(&[(10, 0.5), (20, 0.6)], &peers[..2]));
        assert!(!stops(&[(10, 0.1), (40, 0.1)], &peers));
    }
}
