//! The dashboard of `run --tui`. Separate threads draw it and read the keys, so that it responds while the device
//! works; the terminal is restored however the run ends.

use crate::output::bytes;
use crate::progress::{ENDING, interrupt, interrupted, metrics, request_end};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph};
use ratatui::{DefaultTerminal, Frame};
use sparta_core::job::{EvalReport, Observer, RunPlan, StepReport};
use sparta_core::model::shown;
use sparta_core::report::duration;
use sparta_core::{Error, Result};
use std::collections::VecDeque;
use std::io::{ErrorKind, IsTerminal, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval between frames.
const FRAME: Duration = Duration::from_millis(200);

/// The most points of a curve; longer ones are thinned.
const POINTS: usize = 2000;

/// The most messages kept.
const MESSAGES: usize = 50;

/// `q`, and Ctrl-C in raw mode.
const ENDING_KEYS: [u8; 2] = [b'q', 3];

/// Whether the dashboard has the terminal.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Restores the terminal, if the dashboard has it.
pub fn restore_terminal() {
    if ACTIVE.swap(false, Ordering::SeqCst) {
        // A closed terminal needs no restoring.
        let _ = ratatui::try_restore();
    }
}

/// The dashboard, drawn until it is closed or dropped.
pub struct Dashboard {
    state: Arc<Mutex<State>>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dashboard {
    /// Takes the terminal. Ctrl-C and `q` stop the run cleanly, the second time at once.
    ///
    /// Errors: standard output or input is not a terminal.
    pub fn open() -> Result<Dashboard> {
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Err(Error::Usage("--tui needs a terminal on standard input and output; leave it out here".into()));
        }
        // In raw mode keys send no signals, but others may. An error means that a handler is already installed.
        let _ = ctrlc::set_handler(|| {
            interrupt();
        });
        ACTIVE.store(true, Ordering::SeqCst);
        // This also restores the terminal after a panic.
        let terminal = ratatui::try_init().map_err(|source| {
            restore_terminal();
            Error::io("terminal")(source)
        })?;
        let state = Arc::new(Mutex::new(State::default()));
        let closing = Arc::new(AtomicBool::new(false));
        let shared = (state.clone(), closing.clone());
        let thread = std::thread::Builder::new().spawn(move || draw_until_closed(terminal, &shared.0, &shared.1));
        let thread = thread.and_then(|drawing| std::thread::Builder::new().spawn(read_keys).map(|_| drawing));
        let thread = thread.map_err(|source| {
            restore_terminal();
            Error::io("the threads of --tui")(source)
        })?;
        Ok(Dashboard { state, closing, thread: Some(thread) })
    }

    /// Restores the terminal.
    pub fn close(self) {}

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // A thread that panicked has already restored the terminal.
        let _ = self.thread.take().map(JoinHandle::join);
        restore_terminal();
    }
}

/// After a panic in one thread, the state is still good enough to be shown.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn draw_until_closed(mut terminal: DefaultTerminal, state: &Mutex<State>, closing: &AtomicBool) {
    while !closing.load(Ordering::SeqCst) {
        // Fails only on a closed terminal.
        let _ = terminal.draw(|frame| lock(state).draw(frame));
        std::thread::sleep(FRAME);
    }
}

/// Reads keys until the terminal is closed, which stops the run cleanly. Crossterm's events are not used: they
/// busy-loop at the end of input, which they treat as no input yet.
fn read_keys() {
    let mut keys = [0; 64];
    loop {
        match std::io::stdin().read(&mut keys) {
            Ok(0) => break,
            Ok(n) => {
                for _ in keys[..n].iter().filter(|key| ENDING_KEYS.contains(key)) {
                    interrupt();
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    request_end();
}

/// The content of the dashboard.
#[derive(Default)]
struct State {
    title: String,
    memory: String,
    loss: Curve,
    lr: Curve,
    /// The primary metric, and its values on dev.
    primary: String,
    dev: Curve,
    dev_loss: Curve,
    step: Option<StepReport>,
    /// The first step of this process, and when it finished.
    first: Option<(usize, Instant)>,
    evaluating: Option<String>,
    messages: VecDeque<String>,
}

/// Points of a curve, evenly thinned as it grows.
#[derive(Default)]
struct Curve {
    points: Vec<(f64, f64)>,
    seen: usize,
    /// One in this many points is kept; 0 before the first.
    every: usize,
}

impl Curve {
    fn push(&mut self, step: usize, value: f64) {
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) && value.is_finite() {
            self.points.push((step as f64, value));
        }
        self.seen += 1;
        if self.points.len() >= POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }

    fn bounds(&self) -> [f64; 2] {
        let values = || self.points.iter().map(|(_, value)| *value);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        match (low.is_finite(), high > low) {
            (false, _) => [0.0, 1.0],
            (true, true) => [low, high],
            (true, false) => [low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9)],
        }
    }
}

impl State {
    fn say(&mut self, text: &str) {
        self.messages.extend(text.lines().map(shown));
        let excess = self.messages.len().saturating_sub(MESSAGES);
        self.messages.drain(..excess);
    }

    fn draw(&self, frame: &mut Frame) {
        let rows = [Constraint::Length(1), Constraint::Fill(3), Constraint::Fill(2)];
        let more = [Constraint::Length(3), Constraint::Length(5), Constraint::Length(1)];
        let rows = Layout::vertical(rows.into_iter().chain(more)).split(frame.area());
        let upper = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).split(rows[1]);
        let lower = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).split(rows[2]);
        frame.render_widget(Line::from(self.title.as_str()).bold(), rows[0]);
        let end = self.step.as_ref().map_or(1, |step| step.total_steps.max(1));
        chart(frame, upper[0], "loss", &self.loss, Color::Cyan, end);
        chart(frame, upper[1], &format!("dev {}", self.primary), &self.dev, Color::Green, end);
        chart(frame, lower[0], "learning rate", &self.lr, Color::Yellow, end);
        chart(frame, lower[1], "dev loss", &self.dev_loss, Color::Magenta, end);
        self.draw_progress(frame, rows[3]);
        let inner = rows[4].height.saturating_sub(2) as usize;
        let last = self.messages.iter().skip(self.messages.len().saturating_sub(inner));
        let lines: Vec<Line> = last.map(|text| Line::from(text.as_str())).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" messages ")), rows[4]);
        let help = if interrupted() { ENDING } else { "Ctrl-C or q: save and end" };
        frame.render_widget(Line::from(help).dim(), rows[5]);
    }

    fn draw_progress(&self, frame: &mut Frame, area: Rect) {
        let (done, ratio, speed) = match &self.step {
            None => ("starting".to_owned(), 0.0, String::new()),
            Some(step) => {
                let ratio = (step.step as f64 / step.total_steps.max(1) as f64).clamp(0.0, 1.0);
                let done = format!("step {}/{}, epoch {}", step.step, step.total_steps, step.epoch + 1);
                (done, ratio, format!("{:.0} tokens/s, {} left, ", step.tokens_per_second, duration(self.left(step))))
            }
        };
        let label = self.evaluating.clone().unwrap_or(done);
        let block = Block::bordered().title(format!(" {speed}{} ", self.memory));
        frame.render_widget(Gauge::default().block(block).ratio(ratio).label(label).gauge_style(Color::Cyan), area);
    }

    /// Seconds until the last step, at the pace so far.
    fn left(&self, step: &StepReport) -> f64 {
        let Some((first, started)) = self.first else { return 0.0 };
        let pace = started.elapsed().as_secs_f64() / step.step.saturating_sub(first).max(1) as f64;
        pace * step.total_steps.saturating_sub(step.step) as f64
    }
}

fn chart(frame: &mut Frame, area: Rect, name: &str, curve: &Curve, colour: Color, end: usize) {
    let last = curve.points.last().map(|(_, value)| format!(" {}", short(*value))).unwrap_or_default();
    let bounds = curve.bounds();
    // A few points are not enough for a line.
    let (marker, kind) = match curve.points.len() {
        0..=1 => (Marker::Dot, GraphType::Scatter),
        _ => (Marker::Braille, GraphType::Line),
    };
    let data = Dataset::default().marker(marker).graph_type(kind).style(Style::from(colour)).data(&curve.points);
    let x = Axis::default().bounds([0.0, end as f64]).labels(["0".to_owned(), end.to_string()]);
    let y = Axis::default().bounds(bounds).labels(bounds.map(short));
    let block = Block::bordered().title(format!(" {name}{last} "));
    frame.render_widget(Chart::new(vec![data]).block(block).x_axis(x).y_axis(y), area);
}

fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

impl Observer for Dashboard {
    fn plan(&mut self, plan: &RunPlan) {
        let mut state = self.state();
        let model = plan.model.file_name().unwrap_or(plan.model.as_os_str()).to_string_lossy();
        state.title = shown(&format!("{} on {}, {model}, {}", plan.method, plan.task, plan.device.name));
        state.primary = plan.primary.clone();
        state.memory = format!("{} planned", bytes(plan.total_memory()));
    }

    fn step(&mut self, report: &StepReport) {
        let mut state = self.state();
        state.first.get_or_insert_with(|| (report.step, Instant::now()));
        state.loss.push(report.step, report.loss);
        state.lr.push(report.step, report.lr);
        state.evaluating = None;
        state.step = Some(report.clone());
    }

    fn eval(&mut self, report: &EvalReport) {
        let mut state = self.state();
        state.evaluating = None;
        if report.split == "dev" {
            if let Some(&value) = report.metrics.scores.get(&state.primary) {
                state.dev.push(report.step, value);
            }
            state.dev_loss.push(report.step, report.metrics.loss);
        }
        let best = if report.best { "  best" } else { "" };
        state.say(&format!("step {}  {}: {}{best}", report.step, report.split, metrics(&report.metrics)));
    }

    fn eval_progress(&mut self, split: &str, done: usize, total: usize) {
        self.state().evaluating = Some(format!("{split}: {done}/{total} examples"));
    }

    fn message(&mut self, text: &str) {
        self.state().say(text);
    }

    fn stop_requested(&self) -> bool {
        interrupted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn long_curves_are_thinned_and_keep_their_ends() {
        let mut curve = Curve::default();
        (0..10 * POINTS).for_each(|step| curve.push(step, step as f64));
        assert!(curve.points.len() < POINTS && curve.points.len() > POINTS / 4);
        assert_eq!(curve.points[0], (0.0, 0.0));
        assert!(curve.points.last().unwrap().0 > 9.9 * POINTS as f64);
        let gaps: Vec<f64> = curve.points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]));
    }

    #[test]
    fn everything_is_on_the_screen_and_small_ones_do_no_harm() {
        let mut state = State { title: "sparta on sst2".into(), memory: "1 MiB planned".into(), ..State::default() };
        state.primary = "accuracy".into();
        state.loss.push(1, 0.7);
        state.loss.push(2, 0.5);
        let (step, total_steps, epoch, tokens) = (2, 8, 0, 3);
        let (loss, lr, grad_norm, tokens_per_second) = (0.5, 1e-3, 1.0, 1234.0);
        state.step = Some(StepReport { step, total_steps, epoch, loss, lr, grad_norm, tokens, tokens_per_second });
        state.say("a message");
        let screen = |width, height| {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| state.draw(frame)).unwrap();
            terminal.backend().to_string()
        };
        let text = screen(100, 30);
        for part in ["sparta on sst2", "loss 0.500", "dev accuracy", "step 2/8", "1234 tokens/s", "1 MiB", "a message"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        screen(5, 3);
        screen(1, 1);
    }
}
