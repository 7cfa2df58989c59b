//! The jobs that a page can ask for.

use crate::events::Events;
use crate::host::{machine_memory, stopped, tell};
use crate::{path, plugins};
use serde::Deserialize;
use serde_json::{Value, json};
use sparta_core::adapter::AppliedAdapter;
use sparta_core::files;
use sparta_core::job::{Observer, RunConfig};
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, AdaptedModel, EvalRequest, Generator, Prompt, Sampling, Start, Turn, Writing};
use sparta_core::text::Instruct;
use sparta_core::{Error, Result};
use sparta_graph::{Backend, BackendError, DeviceKind};
use sparta_wgpu::{Options, WgpuBackend};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use web_time::{SystemTime, UNIX_EPOCH};

type Named = BTreeMap<String, Value>;

/// A run. Names of files are those that were given to [`crate::create`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    model: String,
    data: String,
    task: String,
    method: String,
    #[serde(default)]
    options: Named,
    #[serde(default)]
    method_options: Named,
    #[serde(default)]
    task_options: Named,
    /// Whether texts are put to an instruction model as a prompt.
    #[serde(default)]
    instruct: bool,
    /// The run's directory.
    out: String,
    /// Bytes that the run may take on the device, as browsers do not tell how many it has.
    #[serde(default)]
    memory: Option<u64>,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// The device that is used, and what it offers.
    Device {},
    Plan {
        job: Job,
    },
    Train {
        job: Job,
    },
    /// Continues the run in `out` from its last checkpoint.
    Resume {
        out: String,
        memory: Option<u64>,
    },
    /// The first examples of a split as they would be trained on, token by token.
    Examples {
        job: Job,
        split: String,
        first: usize,
    },
    /// Metrics of an adapter, or of a model that classifies, on a split.
    Evaluate {
        adapter: String,
        model: String,
        data: Option<String>,
        split: String,
        max_examples: Option<usize>,
    },
    /// Labels of texts, or of pairs of texts.
    Predict {
        adapter: String,
        model: String,
        texts: Vec<(String, Option<String>)>,
    },
    /// Continues a prompt or, with `chat`, answers it.
    Generate {
        /// A model, or the adapter of one.
        adapter: String,
        model: String,
        prompt: String,
        #[serde(default)]
        chat: bool,
        max_tokens: usize,
        #[serde(default)]
        temperature: f64,
        #[serde(default)]
        seed: u64,
    },
}

impl Job {
    fn config(&self) -> Result<RunConfig> {
        let now = self.instruct.then(|| Instruct::new(None, None));
        Ok(RunConfig {
            model: path(&self.model),
            data: path(&self.data),
            out: path(&self.out),
            task: self.task.clone(),
            method: self.method.clone(),
            method_options: self.method_options.clone(),
            task_options: self.task_options.clone(),
            instruct: now,
            ..RunConfig::of_options(&self.options)?
        })
    }
}

/// Opens the browser's device for a job that may take this many bytes of its memory.
fn open(memory: Option<u64>) -> Result<Box<dyn Backend>> {
    Ok(Box::new(device(memory)?))
}

fn device(memory: Option<u64>) -> Result<WgpuBackend> {
    let Some(first) = sparta_wgpu::devices().into_iter().next() else {
        let reason = "this browser offers no device through WebGPU: use one that does, and see chrome://gpu or \
                      about:support for why it may be turned off, as after repeated crashes until the browser is \
                      started again";
        return Err(BackendError::Other { device: "wgpu".into(), reason: reason.into() }.into());
    };
    // A software device's memory is the machine's.
    let machine = machine_memory().filter(|_| first.info.kind == DeviceKind::SoftwareGpu);
    Ok(WgpuBackend::open_with(0, Options { memory: memory.into_iter().chain(machine).min(), ..Options::default() })?)
}

fn value(result: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(result).map_err(|e| Error::Training(e.to_string()))
}

/// Does a job.
///
/// Errors: those of the job, as the command line words them.
pub fn perform(request: Request) -> Result<Value> {
    let plugins = plugins::all();
    match request {
        Request::Device {} => value(device(None)?.adapter().info.clone()),
        Request::Plan { job } => {
            let info = device(job.memory)?.info();
            let plan = run::plan(&job.config()?, &plugins, &info)?;
            let text = plan.to_string();
            plan.check_fit()?;
            Ok(json!({ "plan": plan, "text": text }))
        }
        Request::Train { job } => train(&job, &plugins),
        Request::Resume { out, memory } => {
            let config = RunConfig::of_run(&path(&out))?;
            value(run::run(&config, &plugins, &|| open(memory), Start::Resume, &mut Events::default())?)
        }
        Request::Examples { job, split, first } => {
            let mut shown = Vec::new();
            let keep = &mut |example| {
                shown.push(example);
                Ok(())
            };
            run::show(&job.config()?, &plugins, Some(&split), Some(first), keep)?;
            value(shown)
        }
        Request::Evaluate { adapter, model, data, split, max_examples } => {
            let adapted = adapted(&adapter, &model, &plugins)?;
            let request = EvalRequest {
                split,
                head: None,
                task: None,
                data: data.as_deref().map(path),
                task_options: BTreeMap::new(),
                max_examples,
            };
            let progress = |done, total| Events::default().eval_progress(&request.split, done, total);
            value(run::evaluate(&adapted, &request, &plugins, open(None)?, progress)?)
        }
        Request::Predict { adapter, model, texts } => predict(&adapted(&adapter, &model, &plugins)?, &texts),
        Request::Generate { adapter, model, prompt, chat, max_tokens, temperature, seed } => {
            let applied = AppliedAdapter::open(&path(&adapter), Some(&path(&model)), &plugins)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
            let mut generator = Generator::open(&applied, open(None)?, None, now)?;
            let prompt = match chat {
                true => Prompt::Turns(vec![Turn { role: "user".into(), content: prompt }]),
                false => Prompt::Text(prompt),
            };
            let sampling = Sampling { temperature, top_k: None, top_p: 1.0, seed };
            let writing = Writing { sampling, max_tokens, stop: vec![] };
            value(generator.write(&prompt, &writing, |piece| {
                tell(&json!({ "event": "piece", "value": piece }));
                Ok(if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?)
        }
    }
}

/// Trains in place of the earlier run in `out`, which is there until the plan of the new one fits.
fn train(job: &Job, plugins: &PluginSet) -> Result<Value> {
    let config = job.config()?;
    let out = &config.out;
    if config.model.starts_with(out) || config.data.starts_with(out) {
        let out = &job.out;
        return Err(Error::Usage(format!("out {out:?}: it is emptied, so neither model nor data may be in it")));
    }
    let earlier = files::temporary(out).filter(|_| files::exists(out));
    if let Some(earlier) = &earlier {
        files::rename(out, earlier).map_err(Error::io(out))?;
    }
    let mut events = Events { earlier };
    let result = run::run(&config, plugins, &|| open(job.memory), Start::New, &mut events);
    if let Some(earlier) = events.earlier {
        files::rename(&earlier, out).map_err(Error::io(out))?;
    }
    value(result?)
}

fn adapted(adapter: &str, model: &str, plugins: &PluginSet) -> Result<AdaptedModel> {
    let adapted = AdaptedModel::open(&path(adapter), Some(&path(model)), plugins)?;
    for text in &adapted.applied().recorded.accepted {
        Events::default().message(text);
    }
    Ok(adapted)
}

/// For each text the labels with their probabilities, or the number that it is given.
fn predict(adapted: &AdaptedModel, texts: &[(String, Option<String>)]) -> Result<Value> {
    let mut predictions = Vec::new();
    let found = adapted.predict(|| open(None), texts)?;
    for heads in &found {
        let [prediction] = &heads[..] else { return Err(Error::Usage("expected an adapter of one head".into())) };
        let head = &adapted.heads()[0];
        let probabilities = match head.objective.as_str() {
            "multi-label classification" => prediction.independent(),
            "regression" => prediction.logits.iter().map(|&x| x.into()).collect(),
            _ => prediction.probabilities(),
        };
        let outputs = head.labels.iter().zip(probabilities).map(|(label, x)| json!({ "label": label, "value": x }));
        predictions.push(Value::Array(outputs.collect()));
    }
    Ok(Value::Array(predictions))
}
