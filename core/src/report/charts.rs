//! The curves of runs: a chart per quantity, a line per run.

use super::RunData;
use super::svg::{Chart, Series, colour};
use crate::job::{EvalReport, StepReport};

/// The most points of a line; with more steps, each point is a mean.
const POINTS: usize = 400;

/// Training loss, dev loss, dev metrics, learning rate, gradient norm; charts without points are left out.
pub fn charts(runs: &[RunData]) -> Vec<Chart> {
    let mut charts =
        vec![steps(runs, "training loss", |step| step.loss), evals(runs, "dev loss", |eval| Some(eval.metrics.loss))];
    let mut metrics: Vec<&String> =
        runs.iter().flat_map(|run| &run.evals).flat_map(|eval| eval.metrics.scores.keys()).collect();
    metrics.sort();
    metrics.dedup();
    for metric in metrics {
        charts.push(evals(runs, &format!("dev {metric}"), |eval| eval.metrics.scores.get(metric).copied()));
    }
    charts.push(steps(runs, "learning rate", |step| step.lr));
    charts.push(steps(runs, "gradient norm", |step| step.grad_norm));
    charts.retain(|chart| chart.series.iter().any(|series| !series.points.is_empty()));
    charts
}

fn steps(runs: &[RunData], title: &str, value: impl Fn(&StepReport) -> f64) -> Chart {
    let most = runs.iter().map(|run| run.steps.len()).max().unwrap_or(0);
    let size = most.div_ceil(POINTS).max(1);
    let title = if size > 1 { format!("{title}, mean of {size} steps") } else { title.to_owned() };
    let mean = |steps: &[StepReport]| {
        let sum: f64 = steps.iter().map(&value).sum();
        (steps.last().map_or(0.0, |step| step.step as f64), sum / steps.len() as f64)
    };
    let chart = chart(title, runs, |run| run.steps.chunks(size).map(mean).collect());
    Chart { noisy: true, ..chart }
}

fn evals(runs: &[RunData], title: &str, value: impl Fn(&EvalReport) -> Option<f64>) -> Chart {
    let dev = |run: &RunData| {
        let dev = run.evals.iter().filter(|eval| eval.split == "dev");
        dev.filter_map(|eval| Some((eval.step as f64, value(eval)?))).collect()
    };
    let mut chart = chart(title.to_owned(), runs, dev);
    for (series, run) in chart.series.iter_mut().zip(runs) {
        series.mark = run.result.as_ref().and_then(|result| result.best_step).map(|step| step as f64);
    }
    chart
}

fn chart(title: String, runs: &[RunData], points: impl Fn(&RunData) -> Vec<(f64, f64)>) -> Chart {
    let line = |(i, run): (usize, &RunData)| Series {
        name: run.name.clone(),
        points: points(run),
        colour: colour(i),
        mark: None,
    };
    let series = runs.iter().enumerate().map(line).collect();
    Chart { title, x_label: "step".into(), series, ..Chart::default() }
}
