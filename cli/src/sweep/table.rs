//! The comparison at the end of a sweep: method x task, the best setting by the metric on dev.

use super::state::{Job, State};
use crate::output::bytes;
use crate::progress::score;
use sparta_core::job::RunResult;
use sparta_core::report::duration;
use sparta_core::train::Metrics;
use sparta_core::{Error, Result};

/// The runs of a sweep with their states.
pub struct Comparison<'a> {
    pub runs: Vec<(&'a Job, State)>,
}

type Finished<'a> = (&'a Job, &'a RunResult);

impl<'a> Comparison<'a> {
    pub fn read(jobs: &'a [Job]) -> Result<Comparison<'a>> {
        let runs = jobs.iter().map(|job| Ok((job, job.state()?))).collect::<Result<_>>()?;
        Ok(Comparison { runs })
    }

    /// How many runs are finished, failed, stopped early, and not over.
    pub fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for (_, state) in &self.runs {
            let kind = match state {
                State::Finished(_) => 0,
                State::Failed(_) => 1,
                State::StoppedEarly(_) => 2,
                State::New | State::Begun { .. } => 3,
            };
            counts[kind] += 1;
        }
        counts
    }

    /// Of every row and task the run that is best on dev, then that of the lower loss, then the first; by rows.
    pub fn best(&self) -> Vec<Finished<'_>> {
        let rows = distinct(self.runs.iter().map(|(job, _)| job.row.as_str()));
        let tasks = self.tasks();
        rows.iter().flat_map(|row| tasks.iter().filter_map(|task| self.best_of(row, task))).collect()
    }

    fn best_of(&self, row: &str, task: &str) -> Option<Finished<'_>> {
        let candidates = self.runs.iter().filter(|(job, _)| job.row == row && job.task == task);
        let finished = candidates.filter_map(|(job, state)| match state {
            State::Finished(result) => Some((*job, result)),
            _ => None,
        });
        // The first of several that are equal stays.
        finished.reduce(|best, next| if rank(next) > rank(best) { next } else { best })
    }

    fn tasks(&self) -> Vec<&str> {
        distinct(self.runs.iter().map(|(job, _)| job.task.as_str()))
    }

    pub fn markdown(&self) -> String {
        let mut parts = Vec::new();
        let best = self.best();
        if !best.is_empty() {
            parts.push("## Test, by task\n".to_owned());
            parts.push(self.paper_table());
            parts.push("\n## The best setting on dev\n".to_owned());
            let header = ["Method", "Task", "Setting", "Dev", "Dev loss", "Test", "Test loss"];
            let header = [&header[..], &["Trained", "Time", "Memory", "Run"]].concat();
            parts.push(markdown_table(&header, best.into_iter().map(best_cells)));
        }
        let over = self.runs.iter().filter_map(|(job, state)| match state {
            State::Failed(message) => Some(("failed", job, message)),
            State::StoppedEarly(message) => Some(("stopped early", job, message)),
            State::New | State::Begun { .. } | State::Finished(_) => None,
        });
        let over: Vec<Vec<String>> = over
            .map(|(what, job, message)| [&job.name, &job.row, &job.setting, what, message].map(str::to_owned).into())
            .collect();
        if !over.is_empty() {
            parts.push("\n## Without a result\n".to_owned());
            parts.push(markdown_table(&["Run", "Method", "Setting", "State", "Message"], over.into_iter()));
        }
        parts.join("\n")
    }

    /// The form of the paper's Tables 3, 4, 5, 10 and 11.
    fn paper_table(&self) -> String {
        let tasks = self.tasks();
        let metric = |task: &&str| {
            self.runs.iter().find(|(job, _)| job.task == *task).map_or(String::new(), |(job, _)| job.metric())
        };
        let header: Vec<String> = ["Method".to_owned(), "Trained".to_owned()]
            .into_iter()
            .chain(tasks.iter().flat_map(|task| [format!("{task} loss"), format!("{task} {}", metric(task))]))
            .collect();
        let rows = distinct(self.runs.iter().map(|(job, _)| job.row.as_str()));
        let cells = rows.into_iter().map(|row| {
            let found: Vec<Option<Finished>> = tasks.iter().map(|task| self.best_of(row, task)).collect();
            let share = found.iter().flatten().next().map_or("-".into(), |(_, result)| trained(result));
            let pair = |one: &Option<Finished>| match one.and_then(|(job, r)| Some((job, r.test.as_ref()?))) {
                Some((job, test)) => [format!("{:.4}", test.loss), primary(job, test)],
                None => ["-".to_owned(), "-".to_owned()],
            };
            [row.to_owned(), share].into_iter().chain(found.iter().flat_map(pair)).collect()
        });
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        markdown_table(&header, cells)
    }

    /// Every run, a line each, with numbers in full.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let header = ["run", "method", "task", "setting", "state", "best", "metric", "dev_metric", "dev_loss"];
        let more = ["test_metric", "test_loss", "trained_share", "training_seconds", "device_memory", "message"];
        let best: Vec<&str> = self.best().iter().map(|(job, _)| job.name.as_str()).collect();
        let mut writer = csv::Writer::from_writer(Vec::new());
        let failed = |e: csv::Error| Error::Usage(format!("comparison.csv: {e}"));
        writer.write_record(header.iter().chain(&more)).map_err(failed)?;
        for (job, state) in &self.runs {
            let (name, message) = match state {
                State::New => ("not begun", ""),
                State::Begun { .. } => ("not finished", ""),
                State::Finished(_) => ("finished", ""),
                State::Failed(message) => ("failed", message.as_str()),
                State::StoppedEarly(message) => ("stopped early", message.as_str()),
            };
            let is_best = best.contains(&job.name.as_str()).to_string();
            let mut record: Vec<String> =
                [&job.name, &job.row, &job.task, &job.setting, name, &is_best, &job.metric()].map(str::to_owned).into();
            record.extend(match state {
                State::Finished(result) => numbers(job, result),
                _ => Default::default(),
            });
            record.push(message.to_owned());
            writer.write_record(&record).map_err(failed)?;
        }
        writer.into_inner().map_err(|e| Error::Usage(format!("comparison.csv: {e}")))
    }
}

/// Better is greater: the metric on dev, then the loss.
fn rank((job, result): Finished) -> (f64, f64) {
    let dev = result.dev.as_ref();
    let metric = dev.and_then(|dev| dev.scores.get(&job.metric())).copied().unwrap_or(f64::NEG_INFINITY);
    (metric, -dev.map_or(f64::INFINITY, |dev| dev.loss))
}

fn numbers(job: &Job, result: &RunResult) -> [String; 7] {
    let text = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let primary = job.metric();
    let metric = |split: &Option<Metrics>| text(split.as_ref().and_then(|m| m.scores.get(&primary).copied()));
    let loss = |split: &Option<Metrics>| text(split.as_ref().map(|m| m.loss));
    [
        metric(&result.dev),
        loss(&result.dev),
        metric(&result.test),
        loss(&result.test),
        share(result).to_string(),
        result.training_seconds.to_string(),
        result.device_memory.to_string(),
    ]
}

fn best_cells((job, result): Finished) -> Vec<String> {
    let metric = |split: &Option<Metrics>| split.as_ref().map_or("-".into(), |m| primary(job, m));
    let loss = |split: &Option<Metrics>| split.as_ref().map_or("-".into(), |m| format!("{:.4}", m.loss));
    vec![
        job.row.clone(),
        job.task.clone(),
        job.setting.clone(),
        format!("{} {}", job.metric(), metric(&result.dev)),
        loss(&result.dev),
        metric(&result.test),
        loss(&result.test),
        trained(result),
        duration(result.training_seconds),
        bytes(result.device_memory),
        job.name.clone(),
    ]
}

fn primary(job: &Job, metrics: &Metrics) -> String {
    let metric = job.metric();
    metrics.scores.get(&metric).map_or("-".into(), |&value| score(&metric, value))
}

fn share(result: &RunResult) -> f64 {
    (result.trainable.body + result.trainable.head) as f64 / result.parameters as f64
}

fn trained(result: &RunResult) -> String {
    format!("{:.4} %", 100.0 * share(result))
}

fn distinct<'s>(names: impl Iterator<Item = &'s str>) -> Vec<&'s str> {
    let mut seen = Vec::new();
    names.for_each(|name| {
        if !seen.contains(&name) {
            seen.push(name);
        }
    });
    seen
}

fn markdown_table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let cell = |text: &str| text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ");
    let head = row(header.iter().map(|title| cell(title)).collect());
    let rule = format!("|{}", "---|".repeat(header.len()));
    let body = rows.map(|cells| row(cells.iter().map(|text| cell(text)).collect()));
    [head, rule].into_iter().chain(body).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    fn job(name: &str, row: &str, task: &str, primary: &str) -> Job {
        let (name, setting) = (name.to_owned(), format!("lr of {name}"));
        let (row, task, primary) = (row.to_owned(), task.to_owned(), primary.to_owned());
        Job { name, directory: PathBuf::new(), row, task, primary, setting, options: BTreeMap::new() }
    }

    /// A finished run by its metric and loss on dev and the metric on test.
    fn finished(metric: &str, dev: f64, loss: f64, test: f64) -> State {
        let result = json!({
            "stopped": "completed", "steps": 3, "skipped_steps": 0, "best_step": null,
            "dev": {"examples": 10, "loss": loss, metric: dev}, "test": {"examples": 10, "loss": 0.5, metric: test},
            "trainable": {"body": 40, "head": 10, "density": 0.04, "tensors": 2}, "parameters": 1000,
            "tokens_per_second": 1.0, "training_seconds": 3.21, "device_memory": 2048, "planned_memory": 2048,
            "peak_resident": null, "environment": {"version": "0", "system": "s", "threads": 1}, "out": "o",
            "adapter": "a", "merge_check": null,
        });
        State::Finished(serde_json::from_value(result).unwrap())
    }

    #[test]
    fn the_best_on_dev_is_compared_and_failures_are_told() {
        let jobs = [
            job("a", "SpaRTA", "sst2", "accuracy"),
            job("b", "SpaRTA", "sst2", "accuracy"),
            job("c", "SpaRTA", "sst2", "accuracy"),
            job("d", "SpaRTA", "cola", "mcc"),
            job("e", "Head", "sst2", "accuracy"),
        ];
        let states = [
            finished("accuracy", 0.8, 0.4, 0.99),
            finished("accuracy", 0.9, 0.4, 0.7),
            finished("accuracy", 0.9, 0.3, 0.75),
            finished("mcc", 0.1, 0.3, 0.25),
            State::Failed("no | such\nthing".into()),
        ];
        let comparison = Comparison { runs: jobs.iter().zip(states).collect() };
        let names: Vec<&str> = comparison.best().iter().map(|(job, _)| job.name.as_str()).collect();
        assert_eq!(names, ["c", "d"]);
        assert_eq!(comparison.counts(), [4, 1, 0, 0]);
        let text = comparison.markdown();
        for line in [
            "| Method | Trained | sst2 loss | sst2 accuracy | cola loss | cola mcc |",
            "| SpaRTA | 5.0000 % | 0.5000 | 75.00 % | 0.5000 | 0.2500 |",
            "| Head | - | - | - | - | - |",
            "| SpaRTA | sst2 | lr of c | accuracy 90.00 % | 0.3000 | 75.00 % | 0.5000 | 5.0000 % | 3.2 s | 2.0 KiB | c |",
            "| e | Head | lr of e | failed | no \\| such thing |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let csv = String::from_utf8(comparison.csv().unwrap()).unwrap();
        assert!(
            csv.contains("c,SpaRTA,sst2,lr of c,finished,true,accuracy,0.9,0.3,0.75,0.5,0.05,3.21,2048,\n"),
            "{csv}"
        );
        assert!(csv.contains("e,Head,sst2,lr of e,failed,false,accuracy,,,,,,,,\"no | such\nthing\"\n"), "{csv}");
    }
}
