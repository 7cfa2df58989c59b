//! The definition of a sweep, a TOML file, and the combinations it stands for.
//!
//! `[base]` and `[grid]`, or several `[[grid]]` tables, have the options of `run` as keys; a list stands for one run
//! per value. A grid table overrides `[base]`; its key `name` is the row in the comparison, and with `optional = true`
//! it is left out if its method is not found. `[task.ID]` holds what differs for one task, such as its data, and
//! overrides both.

use super::space::{Combination, Space, alternatives};
use serde::Deserialize;
use sparta_core::{Error, Result, files};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table, Value};

/// The shipped definitions by name.
const SHIPPED: [(&str, &str); 2] = [
    ("paper-table", include_str!("../../assets/paper-table.toml")),
    ("methods", include_str!("../../assets/methods.toml")),
];

/// Marks a table whose method may be missing.
const OPTIONAL: &str = "optional";

/// The most runs of a sweep: more would take days on any machine, and are surely a mistake.
const MOST_RUNS: usize = 10_000;

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

/// Instead of all combinations, `samples` of each grid table and task, drawn without replacement.
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
    /// Evaluations on dev that a run has before it may be stopped.
    #[serde(default = "EarlyStop::after")]
    pub after: usize,
    /// Other runs that must have got as far.
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

impl Definition {
    /// Reads a file, or a shipped definition by name.
    pub fn read(source: &Path) -> Result<Definition> {
        let shipped = SHIPPED.iter().find(|(name, _)| source.to_str() == Some(name) && !source.exists());
        let (name, text) = match shipped {
            Some((name, text)) => (name.to_string(), text.to_string()),
            None => (
                source.display().to_string(),
                files::read_text(source, files::CONFIGURATION).map_err(Error::io(source))?,
            ),
        };
        Self::parse(&text).map_err(|what| Error::Usage(format!("{name}: {what}")))
    }

    fn parse(text: &str) -> std::result::Result<Definition, String> {
        let definition: Definition = toml::from_str(text).map_err(|e| format!("not the definition of a sweep: {e}"))?;
        if let Some(table) = definition.tables().iter().find(|t| t.contains_key("name") && !t["name"].is_str()) {
            return Err(format!("name: expected a string, got {}", table["name"]));
        }
        if let Some(table) = definition.tables().iter().find(|t| t.get(OPTIONAL).is_some_and(|v| !v.is_bool())) {
            return Err(format!("{OPTIONAL}: expected true or false, got {}", table[OPTIONAL]));
        }
        let task_keys = ["task", "name"].into_iter().find(|key| definition.task.values().any(|t| t.contains_key(*key)));
        if let Some(key) = task_keys {
            return Err(format!("{key}: [task.ID] sets options for the runs of one task; {key} is not such an option"));
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

    /// Removes the optional tables whose method is not found.
    ///
    /// Returns these methods.
    pub fn leave_out(&mut self, found: impl Fn(&str) -> bool) -> Vec<String> {
        let mut missing = Vec::new();
        let stays = |table: &mut Table| {
            let optional = table.remove(OPTIONAL).and_then(|value| value.as_bool()).unwrap_or(false);
            let method = table.get("method").and_then(Value::as_str).filter(|method| optional && !found(method));
            missing.extend(method.map(str::to_owned));
            method.is_none()
        };
        match &mut self.grid {
            Some(Grid::Several(tables)) => tables.retain_mut(stays),
            // A single table stays, and its run reports what is missing.
            Some(Grid::One(table)) => drop(table.remove(OPTIONAL)),
            None => {}
        }
        missing.dedup();
        missing
    }

    /// Replaces the value or list of values of an option wherever it is given; an option given nowhere goes into
    /// `[base]`.
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

    /// Applies `KEY=VALUE` with a TOML value, or else a string. `NAME/KEY=VALUE` is for the row or the task of that
    /// name.
    ///
    /// Errors: no `=`; a name that is neither a row nor a task.
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

    /// All tasks named in [base], [grid] and [task.ID].
    fn task_names(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.given_tasks().into_iter().chain(self.task.keys().cloned()).collect();
        names.into_iter().collect()
    }

    /// Each combination once, or those that are drawn: ordered by table, task, and then the names of the options, of
    /// which the first varies slowest.
    ///
    /// Errors: too many runs; an option that the sweep sets; a value that no option can have; an empty list.
    pub fn combinations(&self) -> Result<Vec<Combination>> {
        let none = [Table::new()];
        let tables = if self.tables().is_empty() { &none } else { self.tables() };
        let mut spaces = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            self.add_spaces(index, table, &mut spaces)?;
        }
        let drawn = |space: &Space| self.random.map_or(space.size(), |random| space.size().min(random.samples as u128));
        let runs = spaces.iter().map(drawn).fold(0, u128::saturating_add);
        if runs > MOST_RUNS as u128 {
            return Err(Error::Usage(format!(
                "the sweep has {runs} runs, at most {MOST_RUNS} are allowed; shorten its lists, or draw some of them with \
                 --samples"
            )));
        }
        let mut known = BTreeSet::new();
        let all = spaces.iter().flat_map(|space| match self.random {
            Some(random) => space.draw(random.samples, random.seed),
            None => space.all(),
        });
        Ok(all.filter(|one| known.insert(one.options.clone())).collect())
    }

    /// Adds a table's spaces, one per task.
    fn add_spaces(&self, index: usize, table: &Table, spaces: &mut Vec<Space>) -> Result<()> {
        let mut merged = self.base.clone();
        merged.extend(table.clone());
        let Some(tasks) = merged.get("task") else {
            spaces.push(Space::new(index, merged)?);
            return Ok(());
        };
        for task in alternatives("task", tasks)? {
            let mut merged = merged.clone();
            merged.extend(self.task.get(&task).cloned().unwrap_or_default());
            merged.insert("task".to_owned(), Value::String(task));
            spaces.push(Space::new(index, merged)?);
        }
        Ok(())
    }

    /// The tasks of [task.ID] tables that no run has.
    pub fn idle_tasks(&self) -> Vec<&str> {
        let given = self.given_tasks();
        self.task.keys().map(String::as_str).filter(|task| !given.contains(*task)).collect()
    }

    /// The tasks of the runs.
    pub fn given_tasks(&self) -> BTreeSet<String> {
        let given = [&self.base].into_iter().chain(self.tables()).filter_map(|table| table.get("task"));
        let given = given.flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]));
        given.filter_map(|value| Some(value.as_str()?.to_owned())).collect()
    }
}

/// The name of a table's row in the comparison.
fn row_name(table: &Table) -> Option<&str> {
    table.get("name").or(table.get("method")).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::super::space::digest;
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
    fn names_depend_only_on_the_options() {
        let one = combinations("[base]\nlr = 1e-3\n[grid]\nseed = 4");
        let same = combinations("[grid]\nname = 'x'\nseed = [5, 4]\nlr = 0.001");
        assert_eq!(one[0].hash(), same[1].hash());
        assert_ne!(one[0].hash(), same[0].hash());
        // Directories of earlier versions are recognised.
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
    fn samples_of_a_grid_that_cannot_be_built_are_drawn_and_the_grid_is_refused() {
        let values: Vec<String> = (1..=2000).map(|n| format!("{n}")).collect();
        let values = values.join(", ");
        let grid = format!("[grid]\nlr = [{values}]\nseed = [{values}]\nepochs = [{values}]\n");
        let error = Definition::parse(&grid).unwrap().combinations().unwrap_err().to_string();
        assert!(error.contains("8000000000 runs") && error.contains("--samples"), "{error}");
        let drawn = combinations(&format!("{grid}[random]\nsamples = 3"));
        assert_eq!(drawn.len(), 3);
        // All of a grid that is no larger than the requested number.
        assert_eq!(combinations("[grid]\nlr = [1, 2]\nseed = [1, 2]\n[random]\nsamples = 9").len(), 4);
    }

    #[test]
    fn a_grid_that_grows_keeps_most_of_its_draws() {
        let grid = |n: usize| {
            let seeds: Vec<String> = (0..n).map(|n| n.to_string()).collect();
            combinations(&format!("[grid]\nseed = [{}]\n[random]\nsamples = 10", seeds.join(", ")))
        };
        let (before, after) = (grid(100), grid(101));
        let kept = before.iter().filter(|one| after.iter().any(|other| other.options == one.options)).count();
        assert!(kept >= 8, "{kept} of 10");
    }

    #[test]
    fn a_task_without_runs_is_known() {
        let definition = Definition::parse("[base]\ntask = 'sst2'\n[task.sst2]\nlr = 1\n[task.ssst2]\nlr = 2").unwrap();
        assert_eq!(definition.idle_tasks(), ["ssst2"]);
    }

    #[test]
    fn set_replaces_an_option_or_adds_it() {
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
        let definition = Definition::read(Path::new("paper-table")).unwrap();
        let all = definition.combinations().unwrap();
        let mut rows: Vec<&str> = all.iter().filter_map(|one| one.row.as_deref()).collect();
        rows.dedup();
        assert_eq!(rows, ["Full FT", "SpaRTA 5 %", "SpaRTA 0.5 %", "SpaRTA 0.05 %", "LoRA", "Head"]);
        assert_eq!(all.len(), 6 * 21);
    }

    #[test]
    fn optional_methods_are_left_out_where_they_are_not_found() {
        let mut definition = Definition::read(Path::new("methods")).unwrap();
        let built_in = ["full", "sparta", "lora", "head"];
        let missing = definition.leave_out(|method| built_in.contains(&method) || method == "dora");
        let others = ["gradient-mask", "lt-sft", "spiel", "sora", "adalora", "delta-dropout", "lr-qat"];
        assert_eq!(missing, [&["vera", "ia3", "magnitude"][..], &others, &["bitfit"]].concat());
        let all = definition.combinations().unwrap();
        let mut rows: Vec<&str> = all.iter().filter_map(|one| one.row.as_deref()).collect();
        rows.dedup();
        assert_eq!(rows, ["Full FT", "SpaRTA", "LoRA", "Head", "DoRA"]);
        assert!(all.iter().all(|one| !one.options.contains_key("optional")));
        assert!(Definition::parse("[[grid]]\noptional = 1").unwrap_err().contains("optional"));
    }
}
