//! `sparta-cli eval`, `predict` and `inspect forward`.

use crate::args::{ColumnArgs, EvalArgs, ForwardArgs, PredictArgs};
use crate::output::{self, Output};
use crate::texts::{Form, Incoming};
use crate::{devices, hub, progress};
use serde::Serialize;
use serde_json::Value;
use sparta_core::adapter::Head;
use sparta_core::model::shown;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, AdaptedModel, EvalRequest, InspectRequest};
use sparta_core::train::objective::{MultiLabel, Regression};
use sparta_core::train::{Metrics, Prediction};
use sparta_core::{Error, Result};
use sparta_task_files::Named;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct EvalResult<'a> {
    run: &'a Path,
    split: &'a str,
    /// Those of the only or the chosen head.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<&'a Metrics>,
    /// Plugins other than those the run was made with.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    other_plugins: &'a [String],
    /// Those of each head by name, if several were evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<&'a BTreeMap<String, Metrics>>,
}

/// Opens a run or an adapter, and reports plugins that differ from those it was made with.
pub fn open(run: &Path, model: Option<PathBuf>, plugins: &PluginSet) -> Result<AdaptedModel> {
    let adapted = AdaptedModel::open(run, hub::optional_model(model)?.as_deref(), plugins)?;
    adapted.applied().recorded.accepted.iter().for_each(output::warn);
    Ok(adapted)
}

pub fn eval(args: EvalArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let mut adapted = open(&args.run, args.model, plugins)?;
    if let Some(precision) = args.precision {
        adapted.set_precision(precision);
    }
    let EvalArgs { run, head, task, data, columns, label, split, max_examples, .. } = args;
    let given = [("format", columns.format), ("text", columns.text), ("pair", columns.pair), ("label", label)];
    let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?))));
    let task_options: BTreeMap<String, Value> = given.collect();
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
        let request = EvalRequest {
            split,
            head: Some(name.clone()),
            task,
            data,
            task_options: task_options.clone(),
            max_examples,
        };
        let device = devices::open(&args.device.device, plugins)?;
        let metrics = run::evaluate(&adapted, &request, plugins, device, |_, _| {})?;
        let title = if chosen.len() > 1 { format!("{name} {}", request.split) } else { request.split };
        output.say(format!("{title:<10} {}", progress::metrics(&metrics)))?;
        if !metrics.per_label.is_empty() {
            output.say(per_label(&metrics))?;
        }
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

/// The most labels for which a confusion matrix is printed.
const MOST_CONFUSED: usize = 12;

/// Precision, recall, F1 and examples of each label, and for a few classes the confusion matrix.
fn per_label(metrics: &Metrics) -> String {
    let labels: Vec<&str> = metrics.per_label.iter().map(|of| of.label.as_str()).collect();
    let rows: Vec<Vec<String>> = metrics
        .per_label
        .iter()
        .map(|of| {
            let shares = [of.precision, of.recall, of.f1].map(|share| format!("{share:.4}"));
            [vec![of.label.clone()], shares.to_vec(), vec![of.support.to_string()]].concat()
        })
        .collect();
    let mut text = output::table(&["label", "precision", "recall", "f1", "examples"], &rows);
    if !metrics.confusion.is_empty() && labels.len() <= MOST_CONFUSED {
        let header = ["label \\ predicted"].into_iter().chain(labels.iter().copied()).collect::<Vec<_>>();
        let row = |(label, counts): (&&str, &Vec<u64>)| {
            [label.to_string()].into_iter().chain(counts.iter().map(u64::to_string)).collect()
        };
        let rows: Vec<Vec<String>> = labels.iter().zip(&metrics.confusion).map(row).collect();
        text += &format!("\n\n{}", output::table(&header, &rows));
    }
    text
}

/// Data other than the run's, possibly a name on the hub.
fn named_data(data: PathBuf, task: Option<&str>, adapted: &AdaptedModel, head: Option<&str>) -> Result<PathBuf> {
    let config = adapted.heads()[adapted.head(head)?].config.as_ref();
    match task.or(config.map(|config| config.task.as_str())) {
        Some(task) => hub::data(data, task),
        None => Ok(data),
    }
}

/// The columns that were named for the training data.
fn trained_columns(adapted: &AdaptedModel) -> Named {
    let options = adapted.heads().iter().find_map(|head| Some(&head.config.as_ref()?.task_options));
    let name = |option: &str| Some(options?.get(option)?.as_str()?.to_owned()).filter(|name| !name.is_empty());
    Named { text: name("text"), pair: name("pair"), label: None }
}

/// The prediction of one head, as JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer<'a> {
    Class {
        label: &'a str,
        probabilities: BTreeMap<&'a str, f64>,
    },
    /// Of several labels, those with a probability above one half.
    Labels {
        labels: Vec<&'a str>,
        probabilities: BTreeMap<&'a str, f64>,
    },
    Number {
        number: f32,
    },
}

pub fn predict(args: PredictArgs, plugins: &PluginSet) -> Result<()> {
    let mut adapted = open(&args.run, args.model, plugins)?;
    if let Some(precision) = args.precision {
        adapted.set_precision(precision);
    }
    let chosen = args.head.as_deref().map(|name| adapted.head(Some(name))).transpose()?;
    let ColumnArgs { format, text, pair } = args.columns;
    let form = Form { format, named: Named { text, pair, label: None }, trained: trained_columns(&adapted) };
    let incoming = Incoming::open(args.input.as_deref(), form)?;
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
        let names = || head.labels.iter().map(String::as_str);
        if head.objective == Regression::NAME {
            return Answer::Number { number: prediction.logits.first().copied().unwrap_or(f32::NAN) };
        }
        if head.objective == MultiLabel::NAME {
            let each = prediction.independent();
            let likely = names().zip(&each).filter(|(_, p)| **p > 0.5).map(|(name, _)| name);
            return Answer::Labels {
                labels: likely.collect(),
                probabilities: names().zip(each.iter().copied()).collect(),
            };
        }
        let label = names().nth(prediction.class()).unwrap_or_default();
        Answer::Class { label, probabilities: names().zip(prediction.probabilities()).collect() }
    }

    /// As text: the answer, and the probabilities in the order of the labels.
    fn fields(&self, head: &Head) -> String {
        let (said, probabilities) = match self {
            Answer::Number { number } => return format!("{number:.4}"),
            Answer::Class { label, probabilities } => (shown(label), probabilities),
            Answer::Labels { labels, probabilities } if labels.is_empty() => ("-".to_owned(), probabilities),
            Answer::Labels { labels, probabilities } => {
                (labels.iter().map(|label| shown(label)).collect::<Vec<_>>().join(", "), probabilities)
            }
        };
        let each = head.labels.iter().filter_map(|label| Some((label, probabilities.get(label.as_str())?)));
        let each = each.map(|(label, p)| format!("{} {p:.4}", shown(label)));
        [said].into_iter().chain(each).collect::<Vec<_>>().join("\t")
    }
}

/// Prints one line: the answer of the only head, or the answers of several with their names.
fn print_answers(heads: &[(&Head, &Prediction)], json: bool) -> Result<()> {
    let fields = |pair: &(&Head, &Prediction)| Answer::new(*pair).fields(pair.0);
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
