//! Whole runs within a check: a few steps with a method or on a task, each a child process started as a user would.

use super::check::CheckArgs;
use super::child::{self, Ended, Input};
use crate::default_job::DefaultJob;
use crate::progress::INTERRUPTED;
use serde_json::Value as Json;
use sparta_core::plugin::{LoadedMethod, PluginKind, PluginSet};
use sparta_core::run::CHOSEN;
use sparta_plugin::method::{Method, Steps};
use sparta_plugin::options::OptionInfo;
use sparta_plugin::task::Target;
use sparta_suites::plugin::{Ending, Outcome, defaults};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Runs of one method or task.
pub struct Job {
    pub kind: PluginKind,
    pub subject: String,
    what: &'static str,
    /// Values for options without a default.
    required: Vec<String>,
    /// For a task, a built-in method that can train it.
    method: &'static str,
    /// Optimizer steps of a run.
    steps: usize,
    /// Whether it is a method that acts between steps.
    acts: bool,
}

const TRAINING: &str = "training, and evaluation in another process";
const RESUMING: &str = "resuming";
const CANCELLING: &str = "cancelling and resuming";

/// The jobs for the methods and tasks of a set.
pub fn tests(plugins: &PluginSet) -> Vec<Job> {
    let job = |kind, subject: &str, what, options: &[OptionInfo], method, (steps, acts)| {
        let values = defaults(options);
        let required = options.iter().filter(|option| option.default.is_none());
        let text = |value: &Json| value.as_str().map_or(value.to_string(), str::to_owned);
        let required = required.map(|option| format!("--{}={}", option.name, text(&values[&option.name])));
        Job { kind, subject: subject.to_owned(), what, required: required.collect(), method, steps, acts }
    };
    let mut all = Vec::new();
    for method in plugins.methods() {
        let (info, steps) = (method.info(), steps(method));
        let whats = [TRAINING, RESUMING, CANCELLING];
        all.extend(whats.map(|what| job(PluginKind::Method, &info.name, what, &info.options, "", steps)));
    }
    for info in plugins.tasks().iter().map(|plugin| plugin.info()) {
        for task in &info.tasks {
            let method = if task.target() == Target::Tokens { "lora" } else { "head" };
            all.push(job(PluginKind::Task, &task.id, TRAINING, &info.options, method, (STEPS, false)));
        }
    }
    all
}

/// How many steps it takes for the method to act twice, before and after a run is resumed, and whether it acts between
/// steps at all.
fn steps(method: &LoadedMethod) -> (usize, bool) {
    // If `steps` fails, the run reports the error.
    let steps = method.steps(&defaults(&method.info().options)).ok().flatten();
    let enough = |steps: Steps| steps.every.saturating_mul(2).clamp(STEPS as u64, MOST_STEPS) as usize;
    (steps.map_or(STEPS, enough), steps.is_some())
}

impl Job {
    pub fn name(&self) -> String {
        format!("{} {}: {}", self.kind, self.subject, self.what)
    }
}

/// Runs a job with the library at `path`.
pub fn run(job: &Job, path: &Path, args: &CheckArgs) -> Outcome {
    if job.kind == PluginKind::Task && args.data.is_none() {
        return Err(Ending::Skipped("there is no data; give --data DIR".into()));
    }
    let scratch = TempDir::new().map_err(|e| format!("no directory for the runs: {e}"))?;
    let runs = Runs { job, path: path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?, args, scratch };
    match job.what {
        TRAINING => runs.trains(),
        RESUMING => runs.resumes(),
        _ => runs.is_cancelled(),
    }
}

struct Runs<'a> {
    job: &'a Job,
    path: PathBuf,
    args: &'a CheckArgs,
    scratch: TempDir,
}

/// Steps of a run, and the most for a method that acts between steps.
const STEPS: usize = 6;
const MOST_STEPS: u64 = 100;
/// In an epoch.
const STEPS_PER_EPOCH: usize = 8;

impl Runs<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn call(&self, arguments: Vec<OsString>, input: Input) -> Result<Ended, String> {
        let all = [vec!["--plugin".into(), self.path.clone().into()], arguments].concat();
        child::run(&all, self.args.limit, input).map_err(|e| e.to_string())
    }

    /// The arguments of `run` or `plan` for this many steps.
    fn options(&self, verb: &str, steps: usize) -> Result<Vec<OsString>, String> {
        // The same for a run that stops halfway.
        let (epochs, steps) = (self.job.steps / STEPS_PER_EPOCH + 4, format!("--max-steps={steps}"));
        let fixed =
            ["--device=cpu", "--precision=f32", "--batch-size=8", "--max-train=64", "--max-dev=16", "--max-test=16"];
        let more = ["--schedule=constant", "--warmup=0", "--max-length=64", "--seed=1", "--json"];
        let mut all: Vec<OsString> = [verb, &steps].iter().chain(&fixed).chain(&more).map(OsString::from).collect();
        all.extend(self.job.required.iter().map(OsString::from).chain([format!("--epochs={epochs}").into()]));
        let method = self.job.kind == PluginKind::Method;
        let mut add = |name: &str, value: OsString| all.extend([OsString::from(name), value]);
        add("--method", if method { self.job.subject.clone().into() } else { self.job.method.into() });
        // Without --model a method trains the built-in model; a task is always given a model.
        let built_in = || DefaultJob::values(self.job.method).map_err(|e| e.to_string());
        let model = match (&self.args.model, method) {
            (Some(model), _) => model.into(),
            (None, true) => return Ok(all),
            (None, false) => built_in()?.remove("model").unwrap_or_default().into(),
        };
        let task = if method { self.args.task.as_deref().unwrap_or("sst2") } else { &self.job.subject };
        add("--model", model);
        add("--task", task.into());
        if let Some(data) = &self.args.data {
            add("--data", data.into());
        }
        Ok(all)
    }

    /// Starts a run that must succeed.
    fn train(&self, out: &str, steps: usize) -> Result<(), Ending> {
        let mut arguments = self.options("run", steps)?;
        arguments.extend(["--until-eof".into(), "--out".into(), self.at(out).into()]);
        let ended = self.call(arguments, Input::Open)?;
        if ended.passed() {
            return Ok(());
        }
        let plan = self.call(self.options("plan", steps)?, Input::Closed)?;
        let (why, refusal) = (ended.why(self.args.limit), plan.why(self.args.limit));
        let broken = ["the process was ended", "the plugin panicked"].iter().any(|sign| refusal.contains(sign));
        // A method may need what the built-in model lacks; what it computes in layers is checked without the model.
        if self.args.model.is_none()
            && !broken
            && plan.status.is_some_and(|status| matches!(status.code(), Some(1 | 2)))
        {
            return Err(Ending::Skipped(format!(
                "the method cannot train the built-in model; give another with --model and --data: {refusal}"
            )));
        }
        Err(Ending::Failed(why))
    }

    /// Resumes a run, which must succeed.
    fn resume(&self, out: &str, steps: usize) -> Result<(), Ending> {
        let steps = format!("--max-steps={steps}");
        let arguments = ["run", "--resume"].map(OsString::from).into_iter().chain([self.at(out).into()]);
        let ended =
            self.call(arguments.chain(["--device=cpu", "--json", &steps].map(OsString::from)).collect(), Input::Open)?;
        match ended.passed() {
            true => Ok(()),
            false => Err(Ending::Failed(format!("resuming: {}", ended.why(self.args.limit)))),
        }
    }

    fn result(&self, out: &str) -> Result<Json, String> {
        let path = self.at(out).join("result.json");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn trains(&self) -> Outcome {
        self.train("run", self.job.steps)?;
        let result = self.result("run")?;
        let merge = |key: &str| result["merge_check"][key].as_f64();
        if let Some((difference, bound)) = merge("largest_difference").zip(merge("bound"))
            && difference > bound
        {
            return Err(Ending::Failed(format!(
                "the merged model's logits differ from the adapted model's by {difference:.1e}; rounding explains at \
                 most {bound:.1e}"
            )));
        }
        let eval = ["eval".into(), self.at("run").into(), "--split=dev".into(), "--device=cpu".into(), "--json".into()];
        let ended = self.call(eval.to_vec(), Input::Closed)?;
        if !ended.passed() {
            return Err(Ending::Failed(format!("eval in another process: {}", ended.why(self.args.limit))));
        }
        let last = ended.stdout.trim().lines().last().unwrap_or_default();
        let eval: Json = serde_json::from_str(last).map_err(|e| format!("the result of eval cannot be read: {e}"))?;
        let loss = |value: &Json| value["loss"].as_f64();
        let (own, other) = (loss(&result["dev"]), loss(&eval["metrics"]).or_else(|| loss(&eval)));
        match own.zip(other) {
            Some((own, other)) if (own - other).abs() <= 1e-5 * own.abs().max(1.0) => {
                Ok(format!("loss {own:.4} on dev after {} steps", result["steps"]))
            }
            Some((own, other)) => Err(Ending::Failed(format!(
                "the loss on dev is {own} in the run and {other} in another process that reads what was saved"
            ))),
            None => Err(Ending::Failed("there is no loss on dev to compare".into())),
        }
    }

    fn resumes(&self) -> Outcome {
        self.train("whole", self.job.steps)?;
        self.train("half", self.job.steps / 2)?;
        self.resume("half", self.job.steps)?;
        match self.same("half", "a run that was resumed halfway") {
            // Such a method knows the number of steps, which is larger in the resumed run.
            Err(Ending::Failed(what)) if self.job.acts => Err(Ending::Skipped(format!(
                "{what}, which is allowed if it depends on the length of the run; the next test resumes at the same \
                 length"
            ))),
            outcome => outcome,
        }
    }

    fn is_cancelled(&self) -> Outcome {
        self.train("whole", self.job.steps)?;
        let mut arguments = self.options("run", self.job.steps)?;
        arguments.extend(["--until-eof".into(), "--out".into(), self.at("half").into()]);
        // A run that is stopped while it scores elements has nothing to resume.
        let chosen = self.at("half").join(CHOSEN);
        let scores = self.at("whole").join(CHOSEN).exists();
        let ended = self.call(arguments, if scores { Input::Until(&chosen) } else { Input::Closed })?;
        if scores && ended.passed() {
            return Err(Ending::Skipped("the run was over before it could be interrupted".into()));
        }
        if ended.status.and_then(|status| status.code()) != Some(INTERRUPTED.into()) {
            return Err(Ending::Failed(format!("an interrupted run: {}", ended.why(self.args.limit))));
        }
        self.resume("half", self.job.steps)?;
        self.same("half", "an interrupted and resumed run")
    }

    /// Checks that a run's adapter equals that of the uninterrupted run, bit for bit.
    fn same(&self, out: &str, what: &str) -> Outcome {
        let read = |out: &str| {
            let path = self.at(out).join("adapter/adapter.safetensors");
            fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        match read(out)? == read("whole")? {
            true => Ok(String::new()),
            false => Err(Ending::Failed(format!(
                "{what} gives different numbers from an uninterrupted one of {} steps",
                self.job.steps
            ))),
        }
    }
}
