//! The page, made by a template that escapes every value.

use super::svg::{self, Chart, Series, colour};
use super::{RunData, charts};
use crate::job::{Lengths, Mistake, SplitPlan, Stopped, thousands};
use crate::train::{MemoryKind, Metrics};
use crate::{Error, Result};
use minijinja::{AutoEscape, Environment, Value, context};
use sparta_graph::memory_size;
use std::collections::BTreeSet;

const TEMPLATE: &str = include_str!("report.html");
const SCRIPT: &str = include_str!("report.js");

/// The page for one or more runs.
pub fn page(runs: &[RunData]) -> Result<String> {
    let charts = charts::charts(runs).iter().map(chart_value).collect::<Result<Vec<_>>>()?;
    let swept = swept(runs);
    let value = |(i, run): (usize, &RunData)| {
        let swept: Vec<String> = swept.iter().map(|name| option(run, name)).collect();
        context! { swept, ..run_value(i, run) }
    };
    let runs: Vec<Value> = runs.iter().enumerate().map(value).collect();
    let script = Value::from_safe_string(SCRIPT.into());
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let template = environment.template_from_named_str("report.html", TEMPLATE);
    let page = template.and_then(|template| template.render(context! { runs, charts, swept, script }));
    page.map_err(|e| Error::Usage(format!("the report cannot be written: {e:#}")))
}

/// A chart with the data for the page's script.
fn chart_value(chart: &Chart) -> Result<Value> {
    let (svg, frame) = svg::inline(chart)?;
    let line = |series: &Series| {
        let points = series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        let points: Vec<[f64; 2]> = points.map(|&(x, y)| [x, y]).collect();
        context! { name => series.name.as_str(), colour => svg::hex(series.colour), points }
    };
    let series: Vec<Value> = chart.series.iter().map(line).collect();
    let x_label = chart.x_label.as_str();
    let data = context! { x_label, series, ..Value::from_serialize(frame) };
    Ok(context! { svg => Value::from_safe_string(svg), noisy => chart.noisy, data })
}

/// Configuration keys that are paths, or have their own columns.
const NOT_SWEPT: [&str; 6] = ["data", "out", "method", "model", "plugins", "task"];

/// Names of the options, the method's own included, in which the runs differ.
fn swept(runs: &[RunData]) -> Vec<String> {
    let own = runs.iter().flat_map(|run| run.config.keys()).filter(|name| !NOT_SWEPT.contains(&name.as_str()));
    let of_methods = runs.iter().flat_map(|run| run.plan.options.keys());
    let names: BTreeSet<&String> = own.filter(|name| *name != "method_options").chain(of_methods).collect();
    let differs = |name: &&&String| runs.iter().any(|run| option(run, name) != option(&runs[0], name));
    names.iter().filter(differs).map(|name| (**name).clone()).collect()
}

/// The value of an option of the run or its method; empty if it has none.
fn option(run: &RunData, name: &str) -> String {
    let value = run.plan.options.get(name).or_else(|| run.config.get(name));
    value.filter(|value| !value.is_null()).map(plain).unwrap_or_default()
}

/// A run as values for the template: formatted texts.
fn run_value(i: usize, run: &RunData) -> Value {
    let plan = &run.plan;
    let result = run.result.as_ref();
    let trained = &plan.trainable;
    context! {
        name => run.name.as_str(),
        colour => svg::hex(colour(i)),
        model => plan.model.display().to_string(),
        task => plan.task.as_str(),
        method => plan.method.as_str(),
        state => state(run),
        finished => result.is_some(),
        trained => thousands(trained.body + trained.head),
        trained_count => trained.body + trained.head,
        share => format!("{:.4} %", 100.0 * (trained.body + trained.head) as f64 / plan.parameters as f64),
        time => result.map(|r| duration(r.training_seconds)),
        seconds => result.map(|r| r.training_seconds),
        tokens_per_second => result.map(|r| r.tokens_per_second),
        bytes => result.map_or(plan.total_memory(), |r| r.device_memory),
        lengths => lengths(run),
        speed => result.map(|r| thousands(r.tokens_per_second.round() as u64)),
        memory => memory_size(result.map_or(plan.total_memory(), |r| r.device_memory)),
        splits => splits(run),
        answers => Value::from_serialize(result.map_or(&[][..], |r| &r.answers)),
        mistakes => result.map_or(&[][..], |r| &r.mistakes).iter().map(mistake).collect::<Vec<Value>>(),
        sections => sections(run),
        memory_by_kind => memory(run),
    }
}

fn state(run: &RunData) -> String {
    let done = run.steps.last().map_or(0, |step| step.step);
    match &run.result {
        None => format!("not finished: {done} of {} steps are logged", run.plan.total_steps),
        Some(result) => match (result.stopped, result.best_step) {
            (Stopped::Completed, Some(best)) if best != result.steps => {
                format!("{} steps; kept the best state on dev, that of step {best}", result.steps)
            }
            (Stopped::Completed, _) => format!("{} steps", result.steps),
            (Stopped::Interrupted, _) => format!("interrupted after {} steps", result.steps),
            (Stopped::EarlyStopping, Some(best)) => {
                format!("stopped early after {} steps, step {best} kept", result.steps)
            }
            (Stopped::EarlyStopping, None) => format!("stopped early after {} steps", result.steps),
        },
    }
}

/// Final metrics and confusion matrices of dev and test.
fn splits(run: &RunData) -> Vec<Value> {
    let Some(result) = &run.result else { return Vec::new() };
    let found = [("dev", &result.dev), ("test", &result.test)];
    let found = found.into_iter().filter_map(|(name, metrics)| Some((name, metrics.as_ref()?)));
    found
        .map(|(name, metrics)| {
            let scores = metrics.scores.iter().map(|(id, value)| (id.clone(), format!("{value:.4}")));
            let loss = ("loss".to_owned(), format!("{:.4}", metrics.loss));
            let scores: Vec<_> = scores.chain([loss]).map(|(id, value)| vec![id, value]).collect();
            let per_label = metrics.per_label.iter().map(|of| {
                let shares = [of.precision, of.recall, of.f1].map(|share| format!("{share:.4}"));
                [vec![of.label.clone()], shares.to_vec(), vec![thousands(of.support)]].concat()
            });
            let per_label: Vec<Vec<String>> = per_label.collect();
            context! { name, scores, per_label, examples => thousands(metrics.examples), confusion => confusion(run, metrics) }
        })
        .collect()
}

/// Rows of the confusion matrix, each count with its share of the row.
fn confusion(run: &RunData, metrics: &Metrics) -> Value {
    let row = |(i, counts): (usize, &Vec<u64>)| {
        let total: u64 = counts.iter().sum();
        let share = |count: u64| if total == 0 { 0.0 } else { count as f64 / total as f64 };
        let cells = counts.iter().enumerate().map(|(j, &count)| {
            // Half the share as opacity keeps the text readable.
            let (percent, shade) = (format!("{:.0}", 100.0 * share(count)), format!("{:.0}", 50.0 * share(count)));
            context! { count => thousands(count), percent, shade, right => i == j }
        });
        context! { label => run.plan.labels.get(i).map(String::as_str), cells => cells.collect::<Vec<_>>() }
    };
    let rows: Vec<Value> = metrics.confusion.iter().enumerate().map(row).collect();
    context! { labels => run.plan.labels.clone(), rows }
}

fn mistake(mistake: &Mistake) -> Value {
    let Mistake { text, label, predicted, probabilities } = mistake;
    let probabilities = probabilities.map(|p| format!("{p:.3}")).to_vec();
    context! { text, label, predicted, probabilities }
}

/// The histogram of training examples by length.
fn lengths(run: &RunData) -> Vec<Value> {
    let Some(Lengths { width, counts }) = &run.plan.data.train.lengths else { return Vec::new() };
    let largest = counts.iter().copied().max().unwrap_or(1).max(1);
    let bar = |(i, &count): (usize, &usize)| {
        let (from, to) = (i * width + 1, (i + 1) * width);
        let range = match (from, to) {
            (_, 1) => "1 token".to_owned(),
            (from, to) if from == to => format!("{to} tokens"),
            (from, to) => format!("{from} to {to} tokens"),
        };
        context! { range, count => thousands(count as u64), percent => format!("{:.1}", 100.0 * count as f64 / largest as f64) }
    };
    counts.iter().enumerate().map(bar).collect()
}

/// Bytes by kind, with their share of the largest as the bar's length.
fn memory(run: &RunData) -> Vec<Value> {
    let largest = run.plan.memory.values().copied().max().unwrap_or(1).max(1);
    let present = |kind| run.plan.memory.get(&kind).copied().filter(|&bytes| bytes > 0).map(|bytes| (kind, bytes));
    let kinds = MemoryKind::ALL.into_iter().filter_map(present);
    kinds
        .map(|(kind, bytes)| {
            let percent = format!("{:.1}", 100.0 * bytes as f64 / largest as f64);
            context! { title => kind.title(), bytes => memory_size(bytes), percent }
        })
        .collect()
}

/// Tables with a name and a value per row.
fn sections(run: &RunData) -> Vec<Value> {
    let section = |title: &str, rows: Vec<(String, String)>| {
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name, value]).collect();
        context! { title, rows }
    };
    let config = run.config.iter().filter(|(_, value)| !value.is_null());
    let config = config.map(|(name, value)| (name.replace('_', " "), plain(value))).collect();
    vec![
        section("Data", data(run)),
        section("Memory in total", memory_totals(run)),
        section("Environment", environment(run)),
        section("Configuration", config),
    ]
}

fn data(run: &RunData) -> Vec<(String, String)> {
    let data = &run.plan.data;
    let split = |split: &SplitPlan| {
        let (examples, tokens) = (thousands(split.examples as u64), thousands(split.tokens as u64));
        let trained = split.trained.map(|n| format!(", {} trained on", thousands(n as u64))).unwrap_or_default();
        format!("{examples} examples, {tokens} tokens{trained}: {}", split.origin)
    };
    let mut rows: Vec<(String, String)> = [("train", &data.train), ("dev", &data.dev), ("test", &data.test)]
        .into_iter()
        .map(|(name, plan)| (name.to_owned(), split(plan)))
        .collect();
    if data.too_long > 0 {
        let left_out = format!("{} training examples of more than {} tokens", data.too_long, data.max_length);
        rows.push(("left out".into(), left_out));
    }
    rows.extend(data.notes.iter().map(|note| ("note".to_owned(), note.clone())));
    rows
}

fn memory_totals(run: &RunData) -> Vec<(String, String)> {
    let mut rows = vec![("planned".to_owned(), memory_size(run.plan.total_memory()))];
    if let Some(result) = &run.result {
        rows.push(("allocated on the device".into(), memory_size(result.device_memory)));
        rows.extend(result.peak_resident.map(|bytes| ("peak of the process".into(), memory_size(bytes))));
    }
    let paper = &run.plan.paper;
    if paper.is_sparse() {
        rows.push(("the paper's count, 16 P + 96 k bits".into(), memory_size(paper.sparse)));
    }
    rows.push(("the paper's count for full fine-tuning, 64 P bits".into(), memory_size(paper.full)));
    rows
}

fn environment(run: &RunData) -> Vec<(String, String)> {
    let device = &run.plan.device;
    let mut rows = vec![("device".to_owned(), format!("{} ({})", device.name, device.id))];
    rows.push(("driver".into(), device.driver.clone()));
    if let Some(result) = &run.result {
        let environment = &result.environment;
        rows.push(("system".into(), format!("{}, {} threads", environment.system, environment.threads)));
        rows.push(("sparta".into(), environment.version.clone()));
    }
    rows.push(("method".into(), format!("{} {}", run.plan.method, run.plan.method_version)));
    rows
}

/// A JSON value as text: strings without quotes, a method's options as `name value`.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// `3.2 s`, `1 min 40 s`, `2 h 3 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=99 => format!("{seconds:.1} s"),
        100..=5999 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_for_people() {
        let options = serde_json::json!({"density": 0.05, "targets": "all"});
        assert_eq!(plain(&options), "density 0.05, targets all");
        assert_eq!([3.21, 100.0, 7384.0].map(duration), ["3.2 s", "1 min 40 s", "2 h 3 min"]);
    }
}
