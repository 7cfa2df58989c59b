//! What the labels of a table are.

use serde_json::{Map, Value};
use sparta_plugin::Error;
use sparta_plugin::task::{Example, Target};
use sparta_task_files::{Columns, Named, Part, Reading, Table, clip, scalar, text};
use std::collections::BTreeMap;

/// The most different labels of a table.
const MOST: usize = 10_000;
/// Tables with at most this many rows may have a different label in each.
const FEW: u64 = 20;
/// The most bytes of a text.
const LONGEST: usize = sparta_task_files::MAX_LINE;

/// A row of a table.
pub(crate) struct Row {
    pub number: u64,
    pub columns: Columns,
    values: Map<String, Value>,
}

/// The rows of a file.
///
/// # Errors
/// The file cannot be read, or has no columns of texts.
pub(crate) fn rows(part: &Part, named: &Named) -> Result<impl Iterator<Item = Result<Row, Error>> + use<>, Error> {
    let wanted = |name: &str| named.wants(name);
    let table = Table::open(&part.path, part.format, Reading { wanted: Some(&wanted), ..Reading::default() })?;
    let (part, named) = (part.clone(), named.clone());
    if let Some(columns) = table.columns.filter(|columns| !columns.is_empty()) {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        named.columns(&columns).map_err(|what| Error(format!("{}: {what}", part.path.display())))?;
    }
    Ok(table.records.map(move |record| {
        let record = record?;
        let names: Vec<&str> = record.values.keys().map(String::as_str).collect();
        let columns = named.columns(&names).map_err(|what| error(&part, record.number, &what))?;
        Ok(Row { number: record.number, columns, values: record.values })
    }))
}

pub(crate) fn error(part: &Part, number: u64, what: &str) -> Error {
    Error(format!("{}: {what}", part.format.place(&part.path.display().to_string(), number)))
}

impl Row {
    /// Its texts, as an example without a label.
    pub fn texts(&self) -> Result<Example, String> {
        let first = text(&self.values, &self.columns.text)?;
        let pair = self.columns.pair.as_ref().map(|pair| text(&self.values, pair)).transpose()?;
        match first.len().max(pair.as_ref().map_or(0, String::len)) {
            0..=LONGEST => Ok(Example { text: first, pair, ..Example::default() }),
            bytes => Err(format!("expected texts of at most 1 MiB, got one of {bytes} bytes")),
        }
    }

    /// Its labels, trimmed; `None` if the field is empty.
    pub fn labels(&self, separator: Option<&str>) -> Result<Option<Vec<String>>, String> {
        let Some(value) = self.columns.label.as_ref().and_then(|label| self.values.get(label)) else { return Ok(None) };
        let one = |value: &Value| {
            let label = scalar(value).map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
            label.ok_or_else(|| format!("expected texts or numbers as labels, got `{}`", clip(&value.to_string())))
        };
        match (value, separator) {
            (Value::Null, _) => Ok(None),
            (Value::Array(items), _) => items.iter().map(one).collect::<Result<_, _>>().map(Some),
            (Value::String(text), None) if text.trim().is_empty() => Ok(None),
            (Value::String(text), Some(separator)) => {
                let labels = text.split(separator).map(str::trim).filter(|label| !label.is_empty());
                Ok(Some(labels.map(str::to_owned).collect()))
            }
            (value, _) => one(value).map(|label| Some(vec![label])),
        }
    }

    fn has_list(&self) -> bool {
        let label = self.columns.label.as_ref().and_then(|label| self.values.get(label));
        matches!(label, Some(Value::Array(_)))
    }
}

/// What is known about the labels of one or more files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Each label with its number of rows.
    pub names: BTreeMap<String, u64>,
    /// The column of the first row that has one.
    pub column: Option<String>,
    pub rows: u64,
    /// Rows with a label.
    pub labelled: u64,
    /// The first row without one.
    pub unlabelled: Option<u64>,
    pub pair: bool,
    /// Whether there are more names than [`MOST`].
    many: bool,
    lists: bool,
    fraction: bool,
    text: bool,
}

impl Seen {
    /// Reads a whole file.
    ///
    /// # Errors
    /// A malformed row.
    pub fn of(part: &Part, named: &Named, separator: Option<&str>) -> Result<Seen, Error> {
        let mut seen = Seen::default();
        for row in rows(part, named)? {
            let row = row?;
            let labels = row.labels(separator).map_err(|what| error(part, row.number, &what))?;
            seen.rows += 1;
            seen.pair |= row.columns.pair.is_some();
            seen.lists |= row.has_list();
            if seen.column.is_none() {
                seen.column.clone_from(&row.columns.label);
            }
            match labels {
                Some(labels) => seen.add(labels),
                None => seen.unlabelled = seen.unlabelled.or(Some(row.number)),
            }
        }
        Ok(seen)
    }

    fn add(&mut self, labels: Vec<String>) {
        self.labelled += u64::from(!labels.is_empty());
        for label in labels {
            match label.parse::<f64>() {
                Ok(number) if number.is_finite() => self.fraction |= number.fract() != 0.0,
                _ => self.text = true,
            }
            let room = self.names.len() < MOST;
            match self.names.get_mut(&label) {
                Some(rows) => *rows += 1,
                None if room => drop(self.names.insert(label, 1)),
                None => self.many = true,
            }
        }
    }

    /// Whether every label is the hub's -1, which stands for none.
    pub fn is_blank(&self) -> bool {
        self.names.keys().all(|name| name == "-1")
    }

    pub fn join(&mut self, other: Seen) {
        for (name, rows) in other.names {
            *self.names.entry(name).or_default() += rows;
        }
        self.column = self.column.take().or(other.column);
        self.rows += other.rows;
        self.labelled += other.labelled;
        self.unlabelled = self.unlabelled.or(other.unlabelled);
        self.pair |= other.pair;
        self.many |= other.many || self.names.len() > MOST;
        self.lists |= other.lists;
        self.fraction |= other.fraction;
        self.text |= other.text;
    }

    /// What the labels look like: lists, numbers with fractions, or classes.
    pub fn target(&self, separator: Option<&str>) -> Target {
        match self.text {
            _ if self.lists || separator.is_some() => Target::Classes,
            false if self.fraction => Target::Number,
            _ => Target::Class,
        }
    }

    /// Whether the labels are too many or too varied to be classes.
    pub fn are_no_classes(&self) -> bool {
        self.many || (self.labelled > FEW && self.names.len() as u64 == self.labelled)
    }

    /// The weight of each label: as given in `text` or, for `balanced`, rows / (labels * rows with the label), as
    /// in scikit-learn.
    ///
    /// # Errors
    /// A label that does not exist, or a weight that is not a number above 0.
    pub fn weights(&self, text: &str, labels: &[String]) -> Result<Vec<f64>, String> {
        if text == "balanced" {
            let share = |label: &String| {
                let rows = self.names.get(label).copied().unwrap_or(1);
                self.labelled as f64 / (labels.len() as f64 * rows as f64)
            };
            return Ok(labels.iter().map(share).collect());
        }
        let mut weights = vec![1.0; labels.len()];
        for item in text.split(',') {
            let (label, weight) = item.rsplit_once('=').unwrap_or((item, ""));
            let position = labels.iter().position(|known| known == label.trim());
            let weight = weight.trim().parse().ok().filter(|weight: &f64| *weight > 0.0 && weight.is_finite());
            let (Some(position), Some(weight)) = (position, weight) else {
                return Err(format!(
                    "--class-weights: expected balanced, or LABEL=NUMBER,... with numbers above 0 and labels of {}, got `{}`",
                    clip(&labels.join(", ")),
                    clip(item)
                ));
            };
            weights[position] = weight;
        }
        Ok(weights)
    }

    /// The names in order: numbers by value, texts alphabetically.
    pub fn ordered(&self) -> Vec<String> {
        let mut names: Vec<String> = self.names.keys().cloned().collect();
        if !self.text {
            let number = |name: &String| name.parse::<f64>().unwrap_or(0.0);
            names.sort_by(|a, b| number(a).total_cmp(&number(b)));
        }
        names
    }
}
