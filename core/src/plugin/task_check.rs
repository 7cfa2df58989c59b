//! Checks the descriptions of tasks, and examples against them.

use super::names;
use crate::train::Scores;
use crate::train::objective::{MultiLabel, NextToken, Regression};
use sparta_plugin::task::{Example, Target, TaskInfo};

/// Metrics for which lower is better.
const LESS: [&str; 2] = ["mse", "mae"];

/// Errors: a task's description contradicts itself. Its labels may still be unknown until the data are opened.
pub(super) fn described(task: &TaskInfo) -> Result<(), String> {
    names::check("id", &task.id)?;
    names::check_text("title", &task.title)?;
    match task.labels.is_empty() && task.target() != Target::Tokens {
        true => metrics(task),
        false => resolved(task),
    }
}

/// Errors: a task as determined by its data contradicts itself.
pub(super) fn resolved(task: &TaskInfo) -> Result<(), String> {
    labels(task)?;
    metrics(task)?;
    if task.target() == Target::Tokens && task.pair {
        return Err("it has pairs of texts, but no labels for them".into());
    }
    let misplaced = task.target() != Target::Class || task.weights.len() != task.labels.len();
    let bad = |weight: &f64| !(*weight > 0.0 && (*weight as f32).is_finite());
    if !task.weights.is_empty() && (misplaced || task.weights.iter().any(bad)) {
        return Err(format!("its weights {:?} are not a number above 0 for each class", task.weights));
    }
    if let Some(prompt) = &task.prompt {
        let places = ["{text}", "{pair}"].map(|place| prompt.template.matches(place).count());
        if places != [1, usize::from(task.pair)] || prompt.verbalizers.len() != task.labels.len() {
            return Err(format!(
                "its prompt needs {{text}} once, {{pair}} once if it is a pair task, and a verbalizer for each of its {} \
                 labels; got {prompt:?}",
                task.labels.len()
            ));
        }
    }
    Ok(())
}

fn labels(task: &TaskInfo) -> Result<(), String> {
    for label in &task.labels {
        names::check_line("label", label)?;
    }
    let (expected, fits) = match (task.target(), task.labels.len()) {
        (Target::Class, n) => ("two labels or more", n >= 2),
        (Target::Classes, n) => ("a label or more", n >= 1),
        (Target::Number, n) => ("one label, the name of its number", n == 1),
        (Target::Tokens, n) => ("no labels, as tokens are learned", n == 0),
    };
    if !fits {
        return Err(format!("a task needs {expected}; it has {:?}", task.labels));
    }
    if let Some(i) = (0..task.labels.len()).find(|&i| task.labels[..i].contains(&task.labels[i])) {
        return Err(format!("it has the label {:?} twice", task.labels[i]));
    }
    match task.labels.iter().any(|label| label.trim().is_empty()) {
        true => Err(format!("it has a label without a name: {:?}", task.labels)),
        false => Ok(()),
    }
}

fn metrics(task: &TaskInfo) -> Result<(), String> {
    let known = match task.target() {
        Target::Class => Scores::METRICS,
        Target::Classes => MultiLabel::METRICS,
        Target::Number => Regression::METRICS,
        Target::Tokens => NextToken::METRICS,
    };
    if let Some(metric) = task.metrics.iter().find(|metric| !known.contains(&metric.as_str())) {
        return Err(format!("unknown metric `{metric}`; this host computes {}", known.join(", ")));
    }
    if !task.metrics.contains(&task.primary) {
        return Err(format!("its primary metric `{}` is not one of its metrics {:?}", task.primary, task.metrics));
    }
    match LESS.contains(&task.primary.as_str()) {
        true => Err(format!("its primary metric is `{}`, for which lower is better", task.primary)),
        false => Ok(()),
    }
}

/// Errors: an example whose label does not suit the task's target; a pair for a task of single texts, or the reverse.
pub fn check_example(task: &TaskInfo, example: &Example) -> Result<(), String> {
    let (target, count) = (task.target(), task.labels.len());
    let known = |label: u32| match (label as usize) < count {
        true => Ok(()),
        false => Err(format!("label {label}, expected less than {count}")),
    };
    match target {
        Target::Class => known(example.label)?,
        Target::Classes => {
            example.labels.iter().try_for_each(|&label| known(label))?;
            if !example.labels.is_sorted_by(|a, b| a < b) {
                return Err(format!("the labels {:?}, expected ascending ones", example.labels));
            }
        }
        Target::Number => match example.number {
            Some(number) if (number as f32).is_finite() => {}
            number => return Err(format!("expected a finite number, got {number:?}")),
        },
        Target::Tokens => {}
    }
    let strange = [
        ("label", example.label != 0, Target::Class),
        ("labels", !example.labels.is_empty(), Target::Classes),
        ("number", example.number.is_some(), Target::Number),
        ("messages", !example.messages.is_empty(), Target::Tokens),
        ("segments", !example.segments.is_empty(), Target::Tokens),
    ];
    if let Some((what, ..)) = strange.iter().find(|(_, given, of)| *given && *of != target) {
        return Err(format!("it has `{what}`, which do not belong to a task whose target is {target:?}"));
    }
    if !example.text.is_empty() && !example.is_plain() {
        return Err("expected a text, or messages and segments, got both".into());
    }
    check_pair(task, example.pair.is_some())
}

/// Errors: a pair for a task of single texts, or the reverse.
pub fn check_pair(task: &TaskInfo, pair: bool) -> Result<(), String> {
    match (task.pair, pair) {
        (true, false) => Err(format!("expected a pair of texts for task {}, got a single text", task.id)),
        (false, true) => Err(format!("expected a single text for task {}, got a pair", task.id)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_plugin::task::{Message, Segment};

    fn task(target: Target, labels: &[&str], primary: &str) -> TaskInfo {
        TaskInfo {
            id: "t".into(),
            title: "T".into(),
            labels: labels.iter().map(|label| label.to_string()).collect(),
            target: Some(target),
            weights: vec![],
            metrics: vec![primary.into()],
            primary: primary.into(),
            pair: false,
            prompt: None,
        }
    }

    #[test]
    fn labels_and_metrics_belong_to_the_target() {
        for good in [
            task(Target::Class, &["a", "b"], "mcc"),
            task(Target::Classes, &["a"], "exact"),
            task(Target::Number, &["score"], "spearman"),
            task(Target::Tokens, &[], "perplexity"),
        ] {
            resolved(&good).unwrap();
        }
        for (bad, what) in [
            (task(Target::Class, &["a"], "mcc"), "two labels or more"),
            (task(Target::Classes, &[], "exact"), "a label or more"),
            (task(Target::Number, &[], "pearson"), "one label"),
            (task(Target::Number, &["x"], "mse"), "lower is better"),
            (task(Target::Number, &["x"], "f1"), "unknown metric `f1`"),
            (task(Target::Tokens, &["a", "b"], "perplexity"), "no labels"),
        ] {
            let error = resolved(&bad).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        let weighted =
            |target, weights: &[f64]| TaskInfo { weights: weights.into(), ..task(target, &["a", "b"], "f1") };
        resolved(&weighted(Target::Class, &[0.5, 2.0])).unwrap();
        for bad in [
            weighted(Target::Class, &[1.0]),
            weighted(Target::Class, &[1.0, 0.0]),
            weighted(Target::Classes, &[1.0, 1.0]),
        ] {
            assert!(resolved(&bad).unwrap_err().contains("its weights"));
        }
        described(&task(Target::Class, &[], "mcc")).unwrap();
        assert!(described(&task(Target::Tokens, &["a", "b"], "perplexity")).is_err());
    }

    #[test]
    fn examples_have_what_the_target_asks_for() {
        let [class, classes, number, tokens] = [
            task(Target::Class, &["a", "b"], "mcc"),
            task(Target::Classes, &["a", "b", "c"], "f1"),
            task(Target::Number, &["x"], "pearson"),
            task(Target::Tokens, &[], "perplexity"),
        ];
        let text = || Example { text: "t".into(), ..Example::default() };
        let messages =
            || Example { messages: vec![Message { role: "user".into(), ..Message::default() }], ..Example::default() };
        let segments = || vec![Segment { text: "s".into(), trained: true }];
        for (task, example) in [
            (&class, Example { label: 1, ..text() }),
            (&classes, text()),
            (&classes, Example { labels: vec![0, 2], ..text() }),
            (&number, Example { number: Some(-1.5), ..text() }),
            (&tokens, text()),
            (&tokens, messages()),
            (&tokens, Example { segments: segments(), ..Example::default() }),
            (&tokens, Example { segments: segments(), ..messages() }),
        ] {
            check_example(task, &example).unwrap();
        }
        for (task, example, what) in [
            (&class, Example { label: 2, ..text() }, "label 2, expected less than 2"),
            (&class, Example { labels: vec![1], ..text() }, "`labels`"),
            (&class, messages(), "`messages`"),
            (&classes, Example { labels: vec![3], ..text() }, "label 3"),
            (&classes, Example { labels: vec![1, 1], ..text() }, "ascending"),
            (&classes, Example { label: 1, ..text() }, "`label`"),
            (&number, text(), "got None"),
            (&number, Example { number: Some(1e300), ..text() }, "finite"),
            (&tokens, Example { number: Some(1.0), ..text() }, "`number`"),
            (&tokens, Example { text: "t".into(), ..messages() }, "got both"),
            (&tokens, Example { pair: Some("p".into()), ..text() }, "got a pair"),
        ] {
            let error = check_example(task, &example).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
