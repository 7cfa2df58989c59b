//! `sparta-cli eval`, `predict` and `inspect forward`.

use crate::args::{EvalArgs, ForwardArgs, PredictArgs};
use crate::output::{self, Output};
use crate::texts::Incoming;
use crate::{devices, hub, progress};
use serde::Serialize;
use sparta_core::adapter::Head;
use sparta_core::model::shown;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, Adapted, EvalRequest, InspectRequest};
use sparta_core::train::{Metrics, Prediction};
use sparta_core::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct EvalResult<'a> {
    run: &'a Path,
    split: &'a str,
    /// Of the only or chosen head.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<&'a Metrics>,
    /// Plugins that are not those that the run was made with.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    other_plugins: &'a [String],
    /// Of every head by name, where several were evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<&'a BTreeMap<String, Metrics>>,
}

/// Opens a run or an adapter, and says which plugins differ from those it was made with.
pub fn open(run: &Path, model: Option<PathBuf>, plugins: &PluginSet) -> Result<Adapted> {
    let adapted = Adapted::open(run, hub::optional_model(model)?.as_deref(), plugins)?;
    adapted.applied().recorded.accepted.iter().for_each(output::warn);
    Ok(adapted)
}

pub fn eval(args: EvalArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let mut adapted = open(&args.run, args.model, plugins)?;
    if let Some(precision) = args.precision {
        adapted.set_precision(precision);
    }
    let EvalArgs { run, head, task, data, split, max_examples, .. } = args;
    let chosen: Vec<String> = match &head {
        Some(name) => vec![name.clone()],
        None => adapted.heads().iter().map(|head| head.name.clone()).collect(),
    };
    if chosen.len() > 1 && (task.is_some() || data.is_some()) {
        let names = chosen.join(", ");
        return Err(Error::Usage(format!("--task and --data are for one head; choose it with --head: {names}")));
    }
    let data = data.map(|data| named_data(data, task.as_deref(), &adapted, head.as_deref())).transpose()?;
    let mut heads = BTreeMap::new();
    for name in chosen.iter().cloned() {
        let (split, task, data) = (split.clone(), task.clone(), data.clone());
        let request =
            EvalRequest { split, head: Some(name.clone()), task, data, task_options: BTreeMap::new(), max_examples };
        let device = devices::open(&args.device.device, plugins)?;
        let metrics = run::evaluate(&adapted, &request, plugins, device, |_, _| {})?;
        let title = if chosen.len() > 1 { format!("{name} {}", request.split) } else { request.split };
        output.say(format!("{title:<10} {}", progress::metrics(&metrics)))?;
        heads.insert(name, metrics);
    }
    let several = heads.len() > 1;
    output.result(&EvalResult {
        run: &run,
        split: &split,
        metrics: heads.values().next().filter(|_| !several),
        other_plugins: &adapted.applied().recorded.accepted,
        heads: Some(&heads).filter(|_| several),
    })
}

/// Other data than the run's, which may be a name on the hub.
fn named_data(data: PathBuf, task: Option<&str>, adapted: &Adapted, head: Option<&str>) -> Result<PathBuf> {
    let config = adapted.heads()[adapted.head(head)?].config.as_ref();
    match task.or(config.map(|config| config.task.as_str())) {
        Some(task) => hub::data(data, task),
        None => Ok(data),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    label: &'a str,
    probabilities: BTreeMap<&'a str, f64>,
}

pub fn predict(args: PredictArgs, plugins: &PluginSet) -> Result<()> {
    let mut adapted = open(&args.run, args.model, plugins)?;
    if let Some(precision) = args.precision {
        adapted.set_precision(precision);
    }
    let chosen = args.head.as_deref().map(|name| adapted.head(Some(name))).transpose()?;
    let incoming = Incoming::open(args.input.as_deref())?;
    let mut predictor = adapted.predictor(|| devices::open(&args.device, plugins));
    loop {
        let (texts, outcome) = incoming.some();
        for predictions in predictor.predict(&texts)? {
            let heads = adapted.heads().iter().zip(&predictions).enumerate();
            let heads: Vec<(&Head, &Prediction)> =
                heads.filter(|(i, _)| chosen.is_none_or(|chosen| chosen == *i)).map(|(_, answer)| answer).collect();
            print_answers(&heads, args.json)?;
        }
        outcome?;
        if texts.is_empty() {
            return Ok(());
        }
    }
}

impl<'a> Answer<'a> {
    fn new((head, prediction): (&'a Head, &Prediction)) -> Self {
        let labels = || head.labels.iter().map(String::as_str);
        let label = labels().nth(prediction.class()).unwrap_or_default();
        Answer { label, probabilities: labels().zip(prediction.probabilities()).collect() }
    }
}

/// One line: the answer of the only head, or the answers of several with their names.
fn print_answers(heads: &[(&Head, &Prediction)], json: bool) -> Result<()> {
    let fields = |pair: &(&Head, &Prediction)| {
        let probabilities = pair.0.labels.iter().zip(pair.1.probabilities());
        let probabilities = probabilities.map(|(label, p)| format!("{} {p:.4}", shown(label)));
        [shown(Answer::new(*pair).label)].into_iter().chain(probabilities).collect::<Vec<_>>().join("\t")
    };
    match heads {
        [only] if json => output::json_line(&Answer::new(*only)),
        [only] => output::print(fields(only)),
        several if json => {
            let answers: BTreeMap<&str, Answer> =
                several.iter().map(|pair| (&*pair.0.name, Answer::new(*pair))).collect();
            output::json_line(&answers)
        }
        several => {
            let answers: Vec<String> =
                several.iter().map(|pair| format!("{}: {}", pair.0.name, fields(pair))).collect();
            output::print(answers.join("\t"))
        }
    }
}

#[derive(Serialize)]
struct ForwardResult<'a> {
    loss: Option<f64>,
    out: &'a Path,
}

pub fn inspect_forward(args: ForwardArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let request = InspectRequest {
        model: hub::model(args.model, None)?,
        batch: args.batch,
        task: args.task,
        grads: args.grads,
        precision: args.precision,
        out: args.out,
    };
    let loss = run::inspect_forward(&request, devices::open(&args.device.device, plugins)?)?;
    if let Some(loss) = loss {
        output.say(format!("loss       {loss}"))?;
    }
    output.say(format!("saved      {}", request.out.display()))?;
    output.result(&ForwardResult { loss, out: &request.out })
}
