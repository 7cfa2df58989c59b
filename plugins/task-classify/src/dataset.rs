//! An opened table.

use crate::labels::{Row, Seen, error, rows};
use crate::recipe::Files;
use crate::{Settings, info};
use sparta_plugin::Error;
use sparta_plugin::task::{Dataset, Example, Examples, OpenRequest, Recipe, Target, TaskInfo};
use sparta_task_files::{Part, clip};

pub(crate) struct Opened {
    files: Files,
    settings: Settings,
    task: TaskInfo,
    notes: Vec<String>,
}

impl Opened {
    /// Reads all tables for their labels, unless those of a trained model are given.
    ///
    /// # Errors
    /// A malformed row; a training table in which some or all rows have no label; labels that do not fit the
    /// target.
    pub fn new(mut files: Files, settings: Settings, request: &OpenRequest) -> Result<Opened, Error> {
        let mut notes = Vec::new();
        if let Some(task) = &request.trained {
            return Ok(Opened { files, settings, task: task.clone(), notes });
        }
        let mut seen = Seen::default();
        for part in files.clone().all() {
            let own = Seen::of(part, &settings.named, settings.separator.as_deref())?;
            if own.rows == 0 {
                return Err(Error(format!("{}: expected rows, got none", part.path.display())));
            }
            if own.labelled == 0 || own.is_blank() {
                if files.train.contains(part) {
                    return Err(unlabelled(part, &settings, &own));
                }
                notes.push(format!("{} has no labels and is not used; `predict` labels it.", part.name));
                files.remove(part);
                continue;
            }
            if let Some(number) = own.unlabelled {
                let column = own.column.unwrap_or_default();
                return Err(error(part, number, &format!("expected a label in `{column}`, got none")));
            }
            seen.join(own);
        }
        let task = task(&files, &settings, &seen)?;
        let column = seen.column.unwrap_or_default();
        let kind = match task.target() {
            Target::Classes => "any number of labels per text",
            Target::Number => "a number",
            _ => "one label per text",
        };
        if !task.weights.is_empty() {
            let each = task.labels.iter().zip(&task.weights).map(|(label, weight)| format!("{label} {weight:.3}"));
            notes.push(format!("Weights of the classes in training: {}.", each.collect::<Vec<_>>().join(", ")));
        }
        notes.push(format!(
            "The labels are in the column `{column}`, {kind}; use --label and --target to choose differently."
        ));
        Ok(Opened { files, settings, task, notes })
    }

    fn example(&self, part: &Part, row: &Row) -> Result<Example, Error> {
        let fail = |what: String| error(part, row.number, &what);
        let texts = row.texts().map_err(fail)?;
        let labels = row.labels(self.settings.separator.as_deref()).map_err(fail)?;
        let column = row.columns.label.as_deref().unwrap_or_default();
        let labels = labels.ok_or_else(|| fail(format!("expected a label in `{column}`, got none")))?;
        let one = || match &labels[..] {
            [only] => Ok(only),
            several => Err(fail(format!("expected one label in `{column}`, got {}; see --target", several.len()))),
        };
        match self.task.target() {
            Target::Classes => {
                let mut labels =
                    labels.iter().map(|label| self.label(label)).collect::<Result<Vec<_>, _>>().map_err(fail)?;
                labels.sort_unstable();
                labels.dedup();
                Ok(Example { labels, ..texts })
            }
            Target::Number => {
                let label = one()?;
                let number = label.parse().ok().filter(|number: &f64| number.is_finite());
                let number =
                    number.ok_or_else(|| fail(format!("expected a number in `{column}`, got `{}`", clip(label))))?;
                Ok(Example { number: Some(number), ..texts })
            }
            _ => Ok(Example { label: self.label(one()?).map_err(fail)?, ..texts }),
        }
    }

    /// The position of a label, which may also be given by number if the labels are not numbers themselves.
    fn label(&self, name: &str) -> Result<u32, String> {
        let labels = &self.task.labels;
        let by_name = labels.iter().position(|label| label == name);
        let by_number = || {
            let position = name.parse().ok().filter(|&n: &usize| n < labels.len())?;
            labels.iter().all(|label| label.parse::<f64>().is_err()).then_some(position)
        };
        let found = by_name.or_else(by_number).ok_or_else(|| {
            let known = clip(&labels.join(", "));
            format!("expected one of the labels {known}, got `{}`", clip(name))
        });
        found.map(|position| position as u32)
    }
}

fn unlabelled(part: &Part, settings: &Settings, seen: &Seen) -> Error {
    let expected = match (&settings.named.label, &seen.column) {
        (_, Some(column)) => format!("labels in the column `{column}`"),
        (Some(label), None) => format!("a column `{label}`, named by --label"),
        (None, None) => "a column label, labels, target or class, or one named by --label".to_owned(),
    };
    Error(format!("{}: expected {expected}, got none", part.path.display()))
}

/// The task with the labels that were seen.
fn task(files: &Files, settings: &Settings, seen: &Seen) -> Result<TaskInfo, Error> {
    let target = settings.target.unwrap_or_else(|| seen.target(settings.separator.as_deref()));
    let column = seen.column.clone().unwrap_or_default();
    let file = files.all().next().map_or(String::new(), |part| format!("{}: ", part.path.display()));
    if target != Target::Number && seen.are_no_classes() {
        return Err(Error(format!(
            "{file}the column `{column}` has {} different labels in {} rows; name the label column with --label or, \
             for numbers, use --target number",
            seen.names.len(),
            seen.rows
        )));
    }
    let labels = match target {
        Target::Number => vec![column.clone()],
        _ => seen.ordered(),
    };
    if target == Target::Class && labels.len() < 2 {
        return Err(Error(format!(
            "{file}expected two labels or more in `{column}`, got only `{}`",
            clip(&labels.join(", "))
        )));
    }
    let weights = match &settings.weights {
        None => vec![],
        Some(text) if target == Target::Class => seen.weights(text, &labels).map_err(Error)?,
        Some(_) => return Err(Error("--class-weights need one class per text: leave them out here".into())),
    };
    Ok(TaskInfo { weights, ..info(target, labels, seen.pair) })
}

impl Dataset for Opened {
    fn recipe(&self) -> Recipe {
        Recipe { task: Some(self.task.clone()), ..self.files.recipe(self.notes.clone()) }
    }

    fn examples(&self, name: &str) -> Result<Examples<'_>, Error> {
        let part = self.files.all().find(|part| part.name == name);
        let part = part.ok_or_else(|| Error(format!("no part `{name}` in this table")))?;
        let mut failed = false;
        let examples = rows(part, &self.settings.named)?.map(move |row| self.example(part, &row?));
        Ok(Box::new(examples.take_while(move |example| !std::mem::replace(&mut failed, example.is_err()))))
    }
}
