//! How a run tells its progress: a bar on a terminal, plain lines elsewhere.

use crate::output::{self, Output};
use indicatif::{ProgressBar, ProgressStyle};
use sparta_core::job::{EvalReport, Observer, RunPlan, StepReport};
use sparta_core::plugin::running;
use sparta_core::train::Metrics;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often Ctrl-C was pressed.
static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// The exit code after an interruption, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// A terminal that goes away sends its signal to a process more than once.
const SAME_INTERRUPT: Duration = Duration::from_millis(500);

/// Between plain lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// What the first interruption says.
pub const ENDING: &str = "ending after this step and saving what was learned; once more ends at once";

/// From now on the first Ctrl-C asks the run to end after its current step, and the second ends the process.
pub fn handle_interrupts() {
    // An error means that a handler is there already; then nothing is lost.
    let _ = ctrlc::set_handler(|| {
        if interrupt() {
            output::aside(format!("\n{ENDING}"));
        }
    });
}

/// Asks the run to end, as Ctrl-C does; the second time ends the process. True the first time.
pub fn interrupt() -> bool {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now).elapsed();
    let first = INTERRUPTS.fetch_add(1, Ordering::SeqCst) == 0;
    if !first && begun > SAME_INTERRUPT {
        crate::tui::restore_terminal();
        running::ending();
        std::process::exit(INTERRUPTED.into());
    }
    first
}

/// From now on the end of standard input asks the run to end, without effect on a later Ctrl-C.
pub fn end_with_stdin() {
    let watch = || {
        // An input that cannot be read has ended too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        request_end();
    };
    // Without a thread for it the run goes on to its end.
    let _ = std::thread::Builder::new().spawn(watch);
}

/// Asks the run to end, without effect on a later Ctrl-C.
pub fn request_end() {
    INTERRUPTS.fetch_max(1, Ordering::SeqCst);
}

/// Whether the run was asked to end.
pub fn interrupted() -> bool {
    INTERRUPTS.load(Ordering::SeqCst) > 0
}

pub struct Progress {
    output: Output,
    /// On a terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// The first step that was reported, and when.
    first_step: Option<(usize, Instant)>,
}

impl Progress {
    pub fn new(output: Output) -> Progress {
        let shown = std::io::stderr().is_terminal() && !output::is_silent();
        let bar = shown.then(|| ProgressBar::hidden().with_style(style()));
        Progress { output, bar, last_line: None, first_step: None }
    }

    /// A line above the bar.
    fn say(&self, text: &str) {
        // A full disk under stdout does not end a run, whose results are in its directory.
        let say = || drop(self.output.say(text));
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Whether it is time for another plain line.
    fn due(&mut self, always: bool) -> bool {
        let due = always || self.last_line.is_none_or(|last| last.elapsed() >= INTERVAL);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {eta} left").unwrap_or(ProgressStyle::default_bar())
}

impl Observer for Progress {
    fn plan(&mut self, plan: &RunPlan) {
        self.say(&format!("{plan}\n"));
    }

    fn step(&mut self, report: &StepReport) {
        let (first, started) = *self.first_step.get_or_insert_with(|| (report.step, Instant::now()));
        let numbers = format!("loss {:.4}  {:.0} tokens/s", report.loss, report.tokens_per_second);
        if let Some(bar) = &self.bar {
            if bar.is_hidden() {
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                bar.reset();
            }
            bar.set_length(report.total_steps as u64);
            bar.set_message(numbers);
            bar.set_position(report.step as u64);
        } else if self.due(report.step == first || report.step == report.total_steps) {
            let done = report.step.saturating_sub(first).max(1);
            let left = started.elapsed().div_f64(done as f64) * report.total_steps.saturating_sub(report.step) as u32;
            self.say(&format!(
                "step {:>5}/{}  epoch {}  {numbers}  lr {:.2e}  {} s left",
                report.step,
                report.total_steps,
                report.epoch + 1,
                report.lr,
                left.as_secs()
            ));
        }
    }

    fn eval(&mut self, report: &EvalReport) {
        // The last word on test is in the summary.
        if report.split == "test" {
            return;
        }
        let best = if report.best { "  best" } else { "" };
        self.say(&format!("step {:>5}  {}: {}{best}", report.step, report.split, metrics(&report.metrics)));
    }

    fn eval_progress(&mut self, split: &str, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{split} {done}/{total}"));
        } else if done < total && self.due(false) {
            self.say(&format!("{split}: {done}/{total} examples"));
        }
    }

    fn message(&mut self, text: &str) {
        self.say(text);
    }

    fn stop_requested(&self) -> bool {
        interrupted()
    }
}

/// `accuracy 96.30 %  f1 96.28 %  mcc 0.926  loss 0.1042  (999 examples)`.
pub fn metrics(metrics: &Metrics) -> String {
    let scores = metrics.scores.iter().map(|(name, value)| format!("{name} {}", score(name, *value)));
    let scores: Vec<String> = scores.chain([format!("loss {:.4}", metrics.loss)]).collect();
    format!("{}  ({} examples)", scores.join("  "), metrics.examples)
}

/// A metric for people: shares in percent, others as they are.
pub fn score(name: &str, value: f64) -> String {
    match name {
        "accuracy" | "f1" | "precision" | "recall" | "exact" => format!("{:.2} %", 100.0 * value),
        _ => format!("{value:.4}"),
    }
}
