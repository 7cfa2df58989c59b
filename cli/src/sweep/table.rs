//! The comparison at the end of a sweep: method x task, with the best setting by the metric on dev. Runs that differ
//! only in their seed are one setting, whose results are averaged.

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

/// The finished runs of one setting, one per seed.
pub struct Setting<'a> {
    runs: Vec<(&'a Job, &'a RunResult)>,
}

impl<'a> Setting<'a> {
    pub fn jobs(&self) -> impl Iterator<Item = &'a Job> {
        self.runs.iter().map(|(job, _)| *job)
    }

    fn first(&self) -> &'a Job {
        self.runs[0].0
    }

    /// The mean over the seeds; `None` if a run lacks the value.
    fn mean(&self, of: impl Fn(&Job, &RunResult) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = self.runs.iter().map(|(job, result)| of(job, result)).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The primary metric of a split.
    fn metric(&self, split: impl Fn(&RunResult) -> Option<&Metrics>) -> Option<f64> {
        self.mean(|job, result| split(result)?.scores.get(&job.metric()).copied())
    }

    fn loss(&self, split: impl Fn(&RunResult) -> Option<&Metrics>) -> Option<f64> {
        self.mean(|_, result| Some(split(result)?.loss))
    }

    /// Greater is better: the metric on dev, then the negated loss.
    fn rank(&self) -> (f64, f64) {
        (self.metric(dev).unwrap_or(f64::NEG_INFINITY), -self.loss(dev).unwrap_or(f64::INFINITY))
    }

    /// What sets it apart, and the number of seeds averaged.
    fn title(&self) -> String {
        let own = self.first().setting.split(", ").filter(|part| !part.is_empty());
        match self.runs.len() {
            1 => own.collect::<Vec<_>>().join(", "),
            n => {
                let seeds = format!("{n} seeds");
                own.filter(|part| !part.starts_with("seed ")).chain([seeds.as_str()]).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

fn dev(result: &RunResult) -> Option<&Metrics> {
    result.dev.as_ref()
}

fn test(result: &RunResult) -> Option<&Metrics> {
    result.test.as_ref()
}

impl<'a> Comparison<'a> {
    pub fn read(jobs: &'a [Job]) -> Result<Comparison<'a>> {
        let runs = jobs.iter().map(|job| Ok((job, job.state()?))).collect::<Result<_>>()?;
        Ok(Comparison { runs })
    }

    /// Numbers of finished, failed, early-stopped and unfinished runs.
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

    /// For each row and task, the best setting on dev; ties go to the lower loss, then to the first. Ordered by row.
    pub fn best(&self) -> Vec<Setting<'_>> {
        let rows = distinct(self.runs.iter().map(|(job, _)| job.row.as_str()));
        let tasks = self.tasks();
        rows.iter().flat_map(|row| tasks.iter().filter_map(|task| self.best_of(row, task))).collect()
    }

    fn best_of(&self, row: &str, task: &str) -> Option<Setting<'_>> {
        let mut settings: Vec<(Vec<_>, Setting)> = Vec::new();
        for (job, state) in self.runs.iter().filter(|(job, _)| job.row == row && job.task == task) {
            let State::Finished(result) = state else { continue };
            let key: Vec<_> = job.options.iter().filter(|(name, _)| *name != "seed").collect();
            match settings.iter_mut().find(|(known, _)| *known == key) {
                Some((_, setting)) => setting.runs.push((*job, result)),
                None => settings.push((key, Setting { runs: vec![(*job, result)] })),
            }
        }
        let settings = settings.into_iter().map(|(_, setting)| setting);
        // The first of equal settings wins.
        settings.reduce(|best, next| if next.rank() > best.rank() { next } else { best })
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
            parts.push(markdown_table(&header, best.iter().map(best_cells)));
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
            let found: Vec<Option<Setting>> = tasks.iter().map(|task| self.best_of(row, task)).collect();
            let share = found.iter().flatten().next().map_or("-".into(), trained);
            let pair = |one: &Option<Setting>| match one {
                Some(one) => [loss(one.loss(test)), primary(one, one.metric(test))],
                None => ["-".to_owned(), "-".to_owned()],
            };
            [row.to_owned(), share].into_iter().chain(found.iter().flat_map(pair)).collect()
        });
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        markdown_table(&header, cells)
    }

    /// All runs, one per line, with full precision.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let header = ["run", "method", "task", "setting", "state", "best", "metric", "dev_metric", "dev_loss"];
        let more = ["test_metric", "test_loss", "trained_share", "training_seconds", "device_memory", "message"];
        let best = self.best();
        let best: Vec<&str> = best.iter().flat_map(|one| one.jobs()).map(|job| job.name.as_str()).collect();
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

fn best_cells(one: &Setting) -> Vec<String> {
    let job = one.first();
    let mean = |of: fn(&RunResult) -> f64| one.mean(|_, result| Some(of(result))).unwrap_or_default();
    vec![
        job.row.clone(),
        job.task.clone(),
        one.title(),
        format!("{} {}", job.metric(), primary(one, one.metric(dev))),
        loss(one.loss(dev)),
        primary(one, one.metric(test)),
        loss(one.loss(test)),
        trained(one),
        duration(mean(|result| result.training_seconds)),
        bytes(mean(|result| result.device_memory as f64) as u64),
        one.jobs().map(|job| job.name.as_str()).collect::<Vec<_>>().join(" "),
    ]
}

fn primary(one: &Setting, value: Option<f64>) -> String {
    value.map_or("-".into(), |value| score(&one.first().metric(), value))
}

fn loss(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}

fn share(result: &RunResult) -> f64 {
    (result.trainable.body + result.trainable.head) as f64 / result.parameters as f64
}

/// The share that is trained, averaged over seeds, which may draw different numbers.
fn trained(one: &Setting) -> String {
    format!("{:.4} %", 100.0 * one.mean(|_, result| Some(share(result))).unwrap_or_default())
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
        let options = BTreeMap::from([("lr".to_owned(), name.clone())]);
        Job { name, directory: PathBuf::new(), row, task, primary, setting, options }
    }

    /// A finished run with this metric and loss on dev, and this metric on test.
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
    fn the_best_on_dev_is_compared_and_failures_are_listed() {
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
        let best = comparison.best();
        let names: Vec<&str> = best.iter().flat_map(|one| one.jobs()).map(|job| job.name.as_str()).collect();
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

    /// The mean decides, not the luckiest seed.
    #[test]
    fn seeds_of_a_setting_are_one() {
        let run = |name: &str, lr: &str, seed: &str| {
            let mut job = job(name, "LoRA", "sst2", "accuracy");
            job.options = [("lr", lr), ("seed", seed)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            job.setting = format!("lr {lr}, seed {seed}");
            job
        };
        let jobs = [run("a", "1", "1"), run("b", "1", "2"), run("c", "2", "1"), run("d", "2", "2")];
        let states = [
            finished("accuracy", 0.9, 0.4, 0.9),
            finished("accuracy", 0.5, 0.4, 0.5),
            finished("accuracy", 0.8, 0.3, 0.8),
            finished("accuracy", 0.8, 0.5, 0.6),
        ];
        let comparison = Comparison { runs: jobs.iter().zip(states).collect() };
        let best = comparison.best();
        assert_eq!(best.len(), 1);
        assert_eq!(best[0].jobs().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["c", "d"]);
        let text = comparison.markdown();
        let row = "| LoRA | sst2 | lr 2, 2 seeds | accuracy 80.00 % | 0.4000 | 70.00 % | 0.5000 | 5.0000 % | 3.2 s | 2.0 KiB | c d |";
        assert!(text.contains(row), "{text}");
    }
}
