//! The combinations of one grid table for one task, and random samples of them.

use crate::parse::argument_value;
use sha2::{Digest, Sha256};
use sparta_core::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use toml::{Table, Value};

/// Options that the sweep sets for its runs.
const OWN: [&str; 7] = ["out", "resume", "config", "json", "device", "tui", "until-eof"];

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Its table in the grid.
    pub table: usize,
    /// Its row in the comparison; the method's name if absent.
    pub row: Option<String>,
    /// Options of `run` by name.
    pub options: BTreeMap<String, String>,
    /// The options with several values in this sweep.
    pub varied: Vec<String>,
}

impl Combination {
    /// Stable: 12 digits of the SHA-256 of the sorted options.
    pub fn hash(&self) -> String {
        let text: String = self.options.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        digest(&text)
    }

    /// `lr 0.001, density 0.05`: what sets this run apart, besides its method and task.
    pub fn setting(&self) -> String {
        let shown = self.varied.iter().filter(|key| !["method", "task"].contains(&key.as_str()));
        let shown = shown.filter_map(|key| Some(format!("{key} {}", short(self.options.get(key)?))));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// `1e-7` for `0.0000001`; other values are unchanged.
fn short(value: &str) -> String {
    match value.parse::<f64>() {
        Ok(x) if x != 0.0 && x.is_finite() && !(1e-3..1e9).contains(&x.abs()) => format!("{x:e}"),
        _ => value.to_owned(),
    }
}

pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The values of each option; a point is the position of a value for each.
pub struct Space {
    table: usize,
    row: Option<String>,
    options: Vec<(String, Vec<String>)>,
}

type Point = Vec<usize>;

impl Space {
    /// Errors: an option that the sweep sets; a value that no option can have; an empty list.
    pub fn new(table: usize, mut merged: Table) -> Result<Space> {
        let row = match merged.remove("name") {
            Some(Value::String(row)) => Some(row),
            _ => None,
        };
        if let Some(key) = OWN.into_iter().find(|key| merged.contains_key(*key)) {
            return Err(Error::Usage(format!("{key}: the sweep sets this option for its runs; leave it out")));
        }
        let options = merged.iter().map(|(key, value)| Ok((key.clone(), alternatives(key, value)?)));
        Ok(Space { table, row, options: options.collect::<Result<_>>()? })
    }

    /// The number of combinations.
    pub fn size(&self) -> u128 {
        self.options.iter().fold(1, |size, (_, values)| size.saturating_mul(values.len() as u128))
    }

    /// All combinations; the first option varies slowest.
    pub fn all(&self) -> Vec<Combination> {
        let mut points: Vec<Point> = vec![vec![]];
        for (_, values) in &self.options {
            let longer = |point: &Point| {
                let point = point.clone();
                (0..values.len()).map(move |value| [&point[..], &[value]].concat())
            };
            points = points.iter().flat_map(longer).collect();
        }
        points.iter().map(|point| self.combination(point)).collect()
    }

    /// `samples` combinations without replacement, or all if there are no more, in the order of [`Space::all`].
    ///
    /// For each option, a draw takes the value whose hash with the seed and the draw's number is smallest. This looks
    /// only at the values, and most draws stay the same when a list grows.
    pub fn draw(&self, samples: usize, seed: u64) -> Vec<Combination> {
        if self.size() <= samples as u128 {
            return self.all();
        }
        let mut drawn = BTreeSet::new();
        let mut number = 0u64;
        while drawn.len() < samples {
            let least = |(key, values): &(String, Vec<String>)| {
                let hash = |value: &String| Sha256::digest(format!("{seed} {number} {key}={value}"));
                (0..values.len()).min_by_key(|&at| hash(&values[at])).unwrap_or(0)
            };
            drawn.insert(self.options.iter().map(least).collect::<Point>());
            number += 1;
        }
        drawn.iter().map(|point| self.combination(point)).collect()
    }

    fn combination(&self, point: &Point) -> Combination {
        let chosen = self.options.iter().zip(point);
        let options = chosen.map(|((key, values), &at)| (key.clone(), values[at].clone())).collect();
        let varied = self.options.iter().filter(|(_, values)| values.len() > 1).map(|(key, _)| key.clone()).collect();
        Combination { table: self.table, row: self.row.clone(), options, varied }
    }
}

/// The values of an option, each once.
pub fn alternatives(key: &str, value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| {
        argument_value(value)
            .ok_or_else(|| Error::Usage(format!("{key}: expected a string, a number, true or false, got {value}")))
    };
    let mut values = match value {
        Value::Array(list) if list.is_empty() => return Err(Error::Usage(format!("{key}: the list is empty"))),
        Value::Array(list) => list.iter().map(one).collect::<Result<Vec<_>>>()?,
        value => vec![one(value)?],
    };
    let mut known = BTreeSet::new();
    values.retain(|value| known.insert(value.clone()));
    Ok(values)
}
