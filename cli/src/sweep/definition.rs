//! What a sweep is to try: a TOML file, and the combinations that it means.
//!
//! `[base]` and `[grid]`, or several `[[grid]]` tables, have the options of `run` as keys; a list stands for one run with
//! each of its values. A table of the grid wins over `[base]`; its key `name` is the row in the comparison. `[task.ID]` has
//! what is different for one task, for example its data, and wins over both.

use crate::parse::argument_value;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sparta_core::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table, Value};

/// The shipped definition, and what it is called.
const PAPER_TABLE: (&str, &str) = ("paper-table", include_str!("../../assets/paper-table.toml"));

/// Options that the sweep itself gives to its runs.
const OWN: [&str; 7] = ["out", "resume", "config", "json", "device", "tui", "until-eof"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Definition {
    #[serde(default)]
    base: Table,
    grid: Option<Grid>,
    #[serde(default)]
    task: BTreeMap<String, Table>,
    pub random: Option<Random>,
    pub early_stop: Option<EarlyStop>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Grid {
    One(Table),
    Several(Vec<Table>),
}

impl Grid {
    fn tables_mut(&mut self) -> &mut [Table] {
        match self {
            Grid::One(table) => std::slice::from_mut(table),
            Grid::Several(tables) => tables,
        }
    }
}

/// Not all combinations, but `samples` of every table of the grid and every task, drawn without replacement.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    pub samples: usize,
    #[serde(default)]
    pub seed: u64,
}

/// The median rule (Golovin et al. 2017, Google Vizier, section 3.2.2): a run stops when its best dev metric so far is
/// below the median of those that the other runs of its row and task had at the same step.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Evaluations on dev before a run may be stopped.
    #[serde(default = "EarlyStop::after")]
    pub after: usize,
    /// Other runs that must have come as far.
    #[serde(default = "EarlyStop::runs")]
    pub runs: usize,
}

impl EarlyStop {
    fn after() -> usize {
        1
    }

    fn runs() -> usize {
        3
    }
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Which table of the grid it is from.
    pub table: usize,
    /// Its row in the comparison; the method's name if absent.
    pub row: Option<String>,
    /// Options of `run` by name.
    pub options: BTreeMap<String, String>,
    /// Those that have several values in this sweep.
    pub varied: Vec<String>,
}

impl Combination {
    /// Stable: 12 digits of the SHA-256 of the sorted options.
    pub fn hash(&self) -> String {
        let text: String = self.options.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        digest(&text)
    }

    /// `lr 0.001, density 0.05`: what is special about this run, besides its method and task.
    pub fn setting(&self) -> String {
        let shown = self.varied.iter().filter(|key| !["method", "task"].contains(&key.as_str()));
        let shown = shown.filter_map(|key| Some(format!("{key} {}", short(self.options.get(key)?))));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// `1e-7` in place of `0.0000001`; what is no number of this kind stays.
fn short(value: &str) -> String {
    match value.parse::<f64>() {
        Ok(x) if x != 0.0 && x.is_finite() && !(1e-3..1e9).contains(&x.abs()) => format!("{x:e}"),
        _ => value.to_owned(),
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

impl Definition {
    /// A file, or the shipped definition by its name.
    pub fn read(source: &Path) -> Result<Definition> {
        let (name, text) = match source.to_str() {
            Some(name) if name == PAPER_TABLE.0 && !source.exists() => (name.to_owned(), PAPER_TABLE.1.to_owned()),
            _ => (source.display().to_string(), std::fs::read_to_string(source).map_err(Error::io(source))?),
        };
        Self::parse(&text).map_err(|what| Error::Usage(format!("{name}: {what}")))
    }

    fn parse(text: &str) -> std::result::Result<Definition, String> {
        let definition: Definition = toml::from_str(text).map_err(|e| format!("not the definition of a sweep: {e}"))?;
        if let Some(table) = definition.tables().iter().find(|t| t.contains_key("name") && !t["name"].is_str()) {
            return Err(format!("name: expected a text, got {}", table["name"]));
        }
        let task_keys = ["task", "name"].into_iter().find(|key| definition.task.values().any(|t| t.contains_key(*key)));
        if let Some(key) = task_keys {
            return Err(format!("{key}: [task.ID] has options of the runs of one task; {key} is none of them"));
        }
        if definition.random.is_some_and(|random| random.samples == 0) {
            return Err("random: samples must be at least 1".into());
        }
        Ok(definition)
    }

    fn tables(&self) -> &[Table] {
        match &self.grid {
            None => &[],
            Some(Grid::One(table)) => std::slice::from_ref(table),
            Some(Grid::Several(tables)) => tables,
        }
    }

    /// Puts a value, or a list of values, in place of those that an option has; an option that is nowhere is for all runs.
    pub fn set(&mut self, key: &str, value: Value) {
        let mut found = false;
        let tables = self.grid.as_mut().map_or(&mut [][..], Grid::tables_mut);
        let tables = tables.iter_mut().chain([&mut self.base]).chain(self.task.values_mut());
        for table in tables.filter(|table| table.contains_key(key)) {
            table.insert(key.to_owned(), value.clone());
            found = true;
        }
        if !found {
            self.base.insert(key.to_owned(), value);
        }
    }

    /// `KEY=VALUE` with a TOML value; what is none is a text. `NAME/KEY=VALUE` is for the row or the task of that name.
    ///
    /// Errors: no `=`; a name that is no row and no task.
    pub fn set_text(&mut self, text: &str) -> Result<()> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            Error::Usage(format!("--set {text}: expected KEY=VALUE, for example \"lr=[1e-3, 1e-4]\""))
        })?;
        let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let parsed = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
        match key.rsplit_once('/') {
            Some((name, key)) => self.set_of(name.trim(), key.trim(), parsed),
            None => {
                self.set(key.trim(), parsed);
                Ok(())
            }
        }
    }

    fn set_of(&mut self, name: &str, key: &str, value: Value) -> Result<()> {
        if ["task", "name"].contains(&key) {
            return Err(Error::Usage(format!(
                "--set {name}/{key}: {key} is the same for a row or task; leave out {name}/"
            )));
        }
        let tasks = self.task_names();
        let rows: Vec<String> = self.tables().iter().filter_map(row_name).map(str::to_owned).collect();
        if tasks.iter().any(|task| task == name) {
            self.task.entry(name.to_owned()).or_default().insert(key.to_owned(), value);
        } else if rows.iter().any(|row| row == name) {
            let tables = self.grid.as_mut().map_or(&mut [][..], Grid::tables_mut);
            for table in tables.iter_mut().filter(|table| row_name(table) == Some(name)) {
                table.insert(key.to_owned(), value.clone());
            }
        } else {
            let known = rows.into_iter().chain(tasks).collect::<Vec<_>>().join(", ");
            return Err(Error::Usage(format!(
                "--set {name}/{key}: no row and no task is called {name:?}; there are {known}"
            )));
        }
        Ok(())
    }

    /// All tasks, as [base], [grid] and [task.ID] have them.
    fn task_names(&self) -> Vec<String> {
        let given = [&self.base].into_iter().chain(self.tables()).filter_map(|table| table.get("task"));
        let given = given.flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]));
        given
            .filter_map(|value| Some(value.as_str()?.to_owned()))
            .chain(self.task.keys().cloned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Every combination once: by tables, in a table by tasks, and then by the names of the options, of which the first varies slowest.
    ///
    /// Errors: an option that the sweep gives itself; a value that is none of an option; an empty list.
    pub fn combinations(&self) -> Result<Vec<Combination>> {
        let none = [Table::new()];
        let tables = if self.tables().is_empty() { &none } else { self.tables() };
        let mut all: Vec<Combination> = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            for combination in self.of_table(index, table)? {
                if all.iter().all(|known| known.options != combination.options) {
                    all.push(combination);
                }
            }
        }
        Ok(match self.random {
            Some(random) => sample(all, random),
            None => all,
        })
    }

    /// A table's combinations, by tasks.
    fn of_table(&self, index: usize, table: &Table) -> Result<Vec<Combination>> {
        let mut merged = self.base.clone();
        merged.extend(table.clone());
        let tasks = match merged.get("task") {
            Some(task) => alternatives("task", task)?,
            None => return expand(index, merged),
        };
        let mut all = Vec::new();
        for task in tasks {
            let mut merged = merged.clone();
            merged.extend(self.task.get(&task).cloned().unwrap_or_default());
            merged.insert("task".to_owned(), Value::String(task));
            all.extend(expand(index, merged)?);
        }
        Ok(all)
    }
}

/// What the row is called in the comparison.
fn row_name(table: &Table) -> Option<&str> {
    table.get("name").or(table.get("method")).and_then(Value::as_str)
}

/// Every combination of the values in `merged`.
fn expand(index: usize, mut merged: Table) -> Result<Vec<Combination>> {
    let row = match merged.remove("name") {
        Some(Value::String(row)) => Some(row),
        _ => None,
    };
    let first = Combination { table: index, row, options: BTreeMap::new(), varied: Vec::new() };
    let mut all = vec![first];
    for (key, value) in &merged {
        if OWN.contains(&key.as_str()) {
            return Err(Error::Usage(format!("{key}: the sweep gives this option to its runs itself; leave it out")));
        }
        let values = alternatives(key, value)?;
        let with = |one: &Combination, value: &String| {
            let mut one = one.clone();
            one.options.insert(key.clone(), value.clone());
            if values.len() > 1 {
                one.varied.push(key.clone());
            }
            one
        };
        all = all.iter().flat_map(|one| values.iter().map(move |value| with(one, value))).collect();
    }
    Ok(all)
}

fn alternatives(key: &str, value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| {
        argument_value(value)
            .ok_or_else(|| Error::Usage(format!("{key}: expected a text, a number, true or false, got {value}")))
    };
    match value {
        Value::Array(list) if list.is_empty() => Err(Error::Usage(format!("{key}: the list is empty"))),
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Of each table and task those whose hash with the seed is least: the draw of a combination does not depend on which
/// others there are, so a grid that grows keeps most of its runs.
fn sample(all: Vec<Combination>, random: Random) -> Vec<Combination> {
    let group = |one: &Combination| (one.table, one.options.get("task").cloned());
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let draw = |one: &Combination| digest(&format!("{} {}", random.seed, one.hash()));
    for one in &all {
        groups.entry(group(one)).or_default().push(draw(one));
    }
    for draws in groups.values_mut() {
        draws.sort();
        draws.truncate(random.samples);
    }
    all.into_iter().filter(|one| groups.get(&group(one)).is_some_and(|draws| draws.contains(&draw(one)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combinations(text: &str) -> Vec<Combination> {
        Definition::parse(text).unwrap().combinations().unwrap()
    }

    const TWO: &str = "[base]\ntask = ['sst2', 'cola']\nseed = 1\n[[grid]]\nmethod = 'sparta'\nlr = [1e-3, 1e-4]\n\
                       [[grid]]\nname = 'Head'\nmethod = 'head'\nseed = 2";

    #[test]
    fn every_combination_is_there_once_and_the_grid_wins_over_the_base() {
        let all = combinations(TWO);
        assert_eq!(all.len(), 6);
        let settings: Vec<_> = all.iter().map(Combination::setting).collect();
        assert_eq!(settings, ["lr 0.001", "lr 1e-4", "lr 0.001", "lr 1e-4", "", ""].map(String::from));
        assert_eq!(all.iter().filter(|one| one.options["task"] == "cola").count(), 3);
        assert_eq!((all[5].row.as_deref(), all[5].options["seed"].as_str()), (Some("Head"), "2"));
        assert_eq!((all[0].row.as_deref(), all[0].options["seed"].as_str()), (None, "1"));
        assert_eq!(combinations("[base]\nseed = 3").len(), 1);
        assert_eq!(combinations("[grid]\nlr = [0.1, 1e-1]").len(), 1);
    }

    #[test]
    fn names_depend_on_the_options_alone() {
        let one = combinations("[base]\nlr = 1e-3\n[grid]\nseed = 4");
        let same = combinations("[grid]\nname = 'x'\nseed = [5, 4]\nlr = 0.001");
        assert_eq!(one[0].hash(), same[1].hash());
        assert_ne!(one[0].hash(), same[0].hash());
        // Directories of earlier versions are found again.
        assert_eq!(one[0].hash(), digest("lr=0.001\nseed=4\n"));
        assert_eq!(one[0].hash().len(), 12);
    }

    #[test]
    fn samples_are_drawn_for_each_table_and_task() {
        let seeds: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        let text = format!("[base]\ntask = ['a', 'b']\n[grid]\nseed = [{}]\n[random]\nsamples = 5", seeds.join(", "));
        let drawn = combinations(&text);
        assert_eq!(drawn.iter().filter(|one| one.options["task"] == "a").count(), 5);
        assert_eq!(drawn.len(), 10);
        assert_eq!(drawn, combinations(&text));
        assert_ne!(drawn, combinations(&format!("{text}\nseed = 1")));
    }

    #[test]
    fn set_replaces_where_an_option_is_and_adds_it_where_it_is_nowhere() {
        let mut definition = Definition::parse(TWO).unwrap();
        definition.set_text("lr=[1.0, 2.0, 3.0]").unwrap();
        definition.set_text("task=cola").unwrap();
        definition.set_text("epochs = 2").unwrap();
        let all = definition.combinations().unwrap();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|one| one.options["epochs"] == "2" && one.options["task"] == "cola"));
        assert!(!all[3].options.contains_key("lr"));
        assert!(definition.set_text("lr").is_err());
    }

    #[test]
    fn one_row_and_one_task_can_differ() {
        let mut definition = Definition::parse(TWO).unwrap();
        for text in ["Head/lr=[0.1, 0.2]", "cola/data=elsewhere/cola", "cola/epochs=2"] {
            definition.set_text(text).unwrap();
        }
        let all = definition.combinations().unwrap();
        assert_eq!(all.len(), 8);
        assert!(all.iter().all(|one| (one.options["task"] == "cola") == one.options.contains_key("epochs")));
        assert!(
            all.iter().filter(|one| one.options["task"] == "cola").all(|one| one.options["data"] == "elsewhere/cola")
        );
        let lr = |row: Option<&str>| {
            all.iter().filter(|one| one.row.as_deref() == row).map(|one| &*one.options["lr"]).collect::<Vec<_>>()
        };
        assert_eq!(lr(Some("Head")), ["0.1", "0.2", "0.1", "0.2"]);
        assert_eq!(lr(None), ["0.001", "0.0001", "0.001", "0.0001"]);
        let error = definition.set_text("Haed/lr=1").unwrap_err().to_string();
        assert!(error.contains("Haed") && error.contains("Head, cola, sst2"), "{error}");
        // The same in a file.
        let text = format!("{TWO}\n[task.cola]\nepochs = 3\nseed = 7");
        assert!(combinations(&text).iter().all(|one| (one.options["task"] == "cola") == (one.options["seed"] == "7")));
    }

    #[test]
    fn wrong_definitions_are_refused() {
        for text in [
            "[bsae]\nlr = 1",
            "[random]\nseed = 1",
            "[random]\nsamples = 0",
            "grid = 1",
            "[grid]\nname = 1",
            "[task.a]\ntask = 'b'",
        ] {
            assert!(Definition::parse(text).is_err(), "{text}");
        }
        for text in ["[base]\nout = 'x'", "[grid]\nlr = []", "[grid]\nlr = [[1]]", "[base]\nlr = 1979-05-27"] {
            assert!(Definition::parse(text).unwrap().combinations().is_err(), "{text}");
        }
    }

    #[test]
    fn the_paper_table_has_its_six_rows() {
        let definition = Definition::read(Path::new(PAPER_TABLE.0)).unwrap();
        let all = definition.combinations().unwrap();
        let mut rows: Vec<&str> = all.iter().filter_map(|one| one.row.as_deref()).collect();
        rows.dedup();
        assert_eq!(rows, ["Full FT", "SpaRTA 5 %", "SpaRTA 0.5 %", "SpaRTA 0.05 %", "LoRA", "Head"]);
        assert_eq!(all.len(), 6 * 21);
    }
}
