//! A run's progress: a bar on a terminal, plain lines elsewhere.

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

/// The exit code after an interruption, as in shells.
pub const INTERRUPTED: u8 = 130;

/// A closing terminal sends its signal more than once: signals within this time count as one.
const SAME_INTERRUPT: Duration = Duration::from_millis(500);

/// Interval between plain lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// Printed at the first interruption.
pub const ENDING: &str = "stopping after this step and saving; press again to stop at once";

/// Makes the first Ctrl-C ask the run to stop after its current step, and the second end the process.
pub fn handle_interrupts() {
    // An error means that a handler is already installed, which does no harm.
    let _ = ctrlc::set_handler(|| {
        if interrupt() {
            output::aside(format!("\n{ENDING}"));
        }
    });
}

/// Asks the run to stop, as Ctrl-C does; a second call ends the process. True the first time.
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

/// Asks the run to stop when standard input ends, without counting as a Ctrl-C.
pub fn end_with_stdin() {
    let watch = || {
        // An input that cannot be read counts as ended.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        request_end();
    };
    // Without a thread to watch it, the run simply completes.
    let _ = std::thread::Builder::new().spawn(watch);
}

/// Asks the run to stop, without counting as a Ctrl-C.
pub fn request_end() {
    INTERRUPTS.fetch_max(1, Ordering::SeqCst);
}

/// Whether the run was asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTS.load(Ordering::SeqCst) > 0
}

pub struct Progress {
    output: Output,
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// The first reported step, and when.
    first_step: Option<(usize, Instant)>,
}

impl Progress {
    pub fn new(output: Output) -> Progress {
        let shown = std::io::stderr().is_terminal() && !output::is_silent();
        let bar = shown.then(|| ProgressBar::hidden().with_style(style()));
        Progress { output, bar, last_line: None, first_step: None }
    }

    /// Prints a line above the bar.
    fn say(&self, text: &str) {
        // An unwritable stdout does not end a run, whose results are in its directory.
        let say = || drop(self.output.say(text));
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Whether the next plain line is due.
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
        // The summary has the result on test.
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

/// A metric as text: shares in percent, others as they are.
pub fn score(name: &str, value: f64) -> String {
    match name {
        "accuracy" | "f1" | "precision" | "recall" | "exact" => format!("{:.2} %", 100.0 * value),
        _ => format!("{value:.4}"),
    }
}
