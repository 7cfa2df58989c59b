//! `sparta-cli eval`, `predict` and `inspect forward`.

use crate::args::{EvalArgs, ForwardArgs, ForwardTask, PredictArgs};
use crate::devices;
use crate::output::{self, Output};
use crate::progress;
use serde::Serialize;
use sparta_core::plugin::PluginSet;
use sparta_core::run::{self, Adapted, EvalRequest, InspectRequest, InspectTask};
use sparta_core::train::Metrics;
use sparta_core::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

#[derive(Serialize)]
struct EvalResult<'a> {
    run: &'a Path,
    split: &'a str,
    metrics: Metrics,
}

pub fn eval(args: EvalArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let adapted = Adapted::open(&args.run, args.model.as_deref(), plugins)?;
    let device = devices::open(&args.device.device, plugins)?;
    let EvalArgs { run, task, data, split, max_examples, .. } = args;
    let request = EvalRequest { split, task, data, max_examples };
    let metrics = run::evaluate(&adapted, &request, plugins, device, |_, _| {})?;
    output.say(format!("{:<10} {}", request.split, progress::metrics(&metrics)))?;
    output.result(&EvalResult { run: &run, split: &request.split, metrics })
}

/// A text, or a pair of texts.
type Texts = (String, Option<String>);

#[derive(Serialize)]
struct Answer<'a> {
    label: &'a str,
    probabilities: BTreeMap<&'a str, f64>,
}

pub fn predict(args: PredictArgs, plugins: &PluginSet) -> Result<()> {
    let adapted = Adapted::open(&args.run, args.model.as_deref(), plugins)?;
    let (name, content) = match &args.input {
        Some(path) => (path.display().to_string(), std::fs::read_to_string(path).map_err(Error::io(path))?),
        None => {
            let mut content = String::new();
            std::io::stdin().read_to_string(&mut content).map_err(Error::io("standard input"))?;
            ("standard input".to_owned(), content)
        }
    };
    let texts = read_texts(&name, &content)?;
    let device = devices::open(&args.device, plugins)?;
    let labels = adapted.labels();
    for prediction in adapted.predict(device, &texts)? {
        let label = labels.get(prediction.class()).map_or("", String::as_str);
        let probabilities = labels.iter().map(String::as_str).zip(prediction.probabilities());
        if args.json {
            output::json_line(&Answer { label, probabilities: probabilities.collect() })?;
        } else {
            let probabilities: Vec<String> = probabilities.map(|(label, p)| format!("{label} {p:.4}")).collect();
            output::print(format!("{label}\t{}", probabilities.join("\t")))?;
        }
    }
    Ok(())
}

/// One text a line; JSONL if the first line begins with `{`. Empty lines at the end are ignored, others are errors, as the
/// answers would no longer be in line with them.
fn read_texts(name: &str, content: &str) -> Result<Vec<Texts>> {
    let jsonl = content.trim_start().starts_with('{');
    let read = |(index, line): (usize, &str)| {
        let text = if jsonl { read_json(line) } else { read_line(line) };
        text.map_err(|what| Error::Data(format!("{name}:{}: {what}", index + 1)))
    };
    content.trim_end().lines().enumerate().map(read).collect()
}

fn read_line(line: &str) -> std::result::Result<Texts, String> {
    match line.trim() {
        "" => Err("expected a text, got an empty line".into()),
        text => Ok((text.to_owned(), None)),
    }
}

fn read_json(line: &str) -> std::result::Result<Texts, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).map_err(|e| format!("expected a JSON object: {e}"))?;
    let get = |key: &str| match object.get(key) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("expected a string for `{key}`, got {other}")),
    };
    let keys = || object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let text = get("text")?.ok_or_else(|| format!("expected the key `text`, got {}", keys()))?;
    Ok((text, get("pair")?))
}

#[derive(Serialize)]
struct ForwardResult<'a> {
    loss: Option<f64>,
    out: &'a Path,
}

pub fn inspect_forward(args: ForwardArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let task = match args.task {
        ForwardTask::Cls => InspectTask::Classification,
        ForwardTask::Lm => InspectTask::CausalLm,
    };
    let request = InspectRequest { model: args.model, batch: args.batch, task, grads: args.grads, out: args.out };
    let loss = run::inspect_forward(&request, devices::open(&args.device.device, plugins)?)?;
    if let Some(loss) = loss {
        output.say(format!("loss       {loss}"))?;
    }
    output.say(format!("saved      {}", request.out.display()))?;
    output.result(&ForwardResult { loss, out: &request.out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_lines_or_json_objects() {
        let lines = read_texts("f", "good film\n{not json}\n\n").unwrap();
        assert_eq!(lines, [("good film".to_owned(), None), ("{not json}".to_owned(), None)]);
        let pairs = read_texts("f", "{\"text\": \"a\", \"pair\": \"b\"}\n{\"text\": \"c\", \"id\": 1}\n").unwrap();
        assert_eq!(pairs, [("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)]);
        assert_eq!(read_texts("f", "\n").unwrap(), []);
    }

    #[test]
    fn malformed_input_names_the_line() {
        let message = |content| read_texts("f", content).unwrap_err().to_string();
        assert_eq!(message("a\n\nb"), "f:2: expected a text, got an empty line");
        assert_eq!(message("{\"text\": \"a\"}\n{\"txt\": \"b\"}"), "f:2: expected the key `text`, got txt");
        assert_eq!(message("{\"text\": 1}"), "f:1: expected a string for `text`, got 1");
        assert!(message("{\"text\": \"a\"}\nb").starts_with("f:2: expected a JSON object"));
    }
}
