//! The observers of a run: progress bar or dashboard, and TensorBoard's files.

use crate::args::WatchArgs;
use crate::output::Output;
use crate::progress::{Progress, end_with_stdin, handle_interrupts};
use crate::tensorboard::EventFile;
use crate::tui::Dashboard;
use sparta_core::Result;
use sparta_core::job::{EvalReport, Observer, RunPlan, StepReport};
use std::path::{Path, PathBuf};

pub struct Watch {
    view: View,
    /// The run directory, in which the event file is created at the first step.
    events_in: Option<PathBuf>,
    events: Option<EventFile>,
}

enum View {
    Plain(Progress),
    Dashboard(Dashboard),
}

impl Watch {
    /// Observes a run in a directory, and lets Ctrl-C stop it cleanly.
    ///
    /// Errors: a dashboard without a terminal.
    pub fn new(output: Output, args: &WatchArgs, directory: &Path) -> Result<Watch> {
        let view = if args.tui {
            View::Dashboard(Dashboard::open()?)
        } else {
            handle_interrupts();
            View::Plain(Progress::new(output))
        };
        if args.until_eof {
            end_with_stdin();
        }
        Ok(Watch { view, events_in: args.tensorboard.then(|| directory.to_owned()), events: None })
    }

    pub fn finish(self) {
        match self.view {
            View::Plain(progress) => progress.finish(),
            View::Dashboard(dashboard) => dashboard.close(),
        }
    }

    fn observer(&mut self) -> &mut dyn Observer {
        match &mut self.view {
            View::Plain(progress) => progress,
            View::Dashboard(dashboard) => dashboard,
        }
    }

    /// Brings the event file up to date. A failure there does not end the run.
    fn log(&mut self, step: Option<&StepReport>) {
        let created = self.events_in.take().map(|directory| EventFile::continued(&directory)).transpose();
        let written = created.and_then(|created| {
            self.events = created.or(self.events.take());
            let Some(events) = &mut self.events else { return Ok(()) };
            events.follow()?;
            step.map_or(Ok(()), |report| events.speed(report))
        });
        if let Err(error) = written {
            self.events = None;
            self.observer().message(&format!("warning: no more TensorBoard events: {error}"));
        }
    }
}

impl Observer for Watch {
    fn plan(&mut self, plan: &RunPlan) {
        self.observer().plan(plan);
    }

    fn step(&mut self, report: &StepReport) {
        self.log(Some(report));
        self.observer().step(report);
    }

    fn eval(&mut self, report: &EvalReport) {
        self.log(None);
        self.observer().eval(report);
    }

    fn eval_progress(&mut self, split: &str, done: usize, total: usize) {
        self.observer().eval_progress(split, done, total);
    }

    fn message(&mut self, text: &str) {
        self.observer().message(text);
    }

    fn stop_requested(&self) -> bool {
        match &self.view {
            View::Plain(progress) => progress.stop_requested(),
            View::Dashboard(dashboard) => dashboard.stop_requested(),
        }
    }
}
