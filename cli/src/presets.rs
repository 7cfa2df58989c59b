//! Named sets of options from `assets/presets.toml`: the hyper-parameters of the paper's tables, and published ones for
//! prompts and answers. A preset fills in what neither the command line nor the configuration file gives.

use crate::args::PresetsArgs;
use crate::output;
use crate::parse::{Values, argument_value};
use serde::Serialize;
use sparta_core::method::options::nearest;
use sparta_core::{Error, Result};
use toml::{Table, Value};

const PRESETS: &str = include_str!("../assets/presets.toml");

#[derive(Debug, Serialize)]
pub struct Preset {
    pub name: String,
    pub method: String,
    pub options: Vec<Setting>,
    /// Options over which the paper searched: the user has to choose one of the values.
    pub grid: Vec<Setting>,
}

#[derive(Debug, Serialize)]
pub struct Setting {
    pub option: String,
    pub value: Value,
    /// Where it is stated.
    pub source: String,
}

impl Preset {
    /// The options with their values.
    pub fn values(&self) -> Values {
        self.options.iter().filter_map(|s| Some((s.option.clone(), argument_value(&s.value)?))).collect()
    }

    /// The preset's method. Errors: another one was given.
    pub fn method(&self, given: Option<String>) -> Result<String> {
        match given {
            Some(other) if other != self.method => Err(Error::Usage(format!(
                "preset {} is for method {}, not {other}: leave out --method, or use another preset",
                self.name, self.method
            ))),
            _ => Ok(self.method.clone()),
        }
    }

    /// Errors: an option of the grid for which `is_given` is false.
    pub fn check_grid(&self, is_given: impl Fn(&str) -> bool) -> Result<()> {
        match self.grid.iter().find(|setting| !is_given(&setting.option)) {
            None => Ok(()),
            Some(Setting { option, value, source }) => Err(Error::Usage(format!(
                "preset {} leaves --{option} open: give one of the values that the paper searched, {value} ({source})",
                self.name
            ))),
        }
    }
}

/// Errors: no preset of that name; suggests the nearest.
pub fn find(name: &str) -> Result<Preset> {
    let presets = all()?;
    let hint = match nearest(name, presets.iter().map(|preset| preset.name.as_str())) {
        Some(near) => format!("did you mean {near}?"),
        None => "see `sparta-cli presets`".to_owned(),
    };
    let found = presets.into_iter().find(|preset| preset.name == name);
    found.ok_or_else(|| Error::Usage(format!("there is no preset `{name}`; {hint}")))
}

/// All presets: `paper/TASKS/MODEL/METHOD`, and for any model `sft/METHOD`.
pub fn all() -> Result<Vec<Preset>> {
    let broken = |what: &str| Error::Config(format!("the embedded presets.toml: {what}"));
    let file: Table = PRESETS.parse().map_err(|e| broken(&format!("not TOML: {e}")))?;
    let table = |parent: &Table, key: &str| {
        parent.get(key).and_then(Value::as_table).cloned().ok_or_else(|| broken(&format!("no table `{key}`")))
    };
    let models = file.get("models").and_then(Value::as_array).ok_or_else(|| broken("no list `models`"))?;
    let common = table(&file, "model")?;
    let mut presets = Vec::new();
    for tasks in ["imdb", "glue"] {
        let section = table(&file, tasks)?;
        let (shared, grid) = (table(&section, "all")?, table(&section, "grid").unwrap_or_default());
        for (column, model) in models.iter().enumerate() {
            for (row, own) in section.iter().filter(|(name, _)| !["all", "grid"].contains(&name.as_str())) {
                let own = own.as_table().ok_or_else(|| broken(row))?;
                let method = own.get("method").and_then(Value::as_str).ok_or_else(|| broken(row))?;
                presets.push(Preset {
                    name: format!("paper/{tasks}/{}/{row}", model.as_str().unwrap_or_default()),
                    method: method.to_owned(),
                    options: [&common, &shared, own].into_iter().flat_map(|t| settings(t, Some(column))).collect(),
                    grid: settings(&grid, None),
                });
            }
        }
    }
    let section = table(&file, "sft")?;
    let shared = table(&section, "all")?;
    for (row, own) in section.iter().filter(|(name, _)| *name != "all") {
        let own = own.as_table().ok_or_else(|| broken(row))?;
        presets.push(Preset {
            name: format!("sft/{row}"),
            method: own.get("method").and_then(Value::as_str).ok_or_else(|| broken(row))?.to_owned(),
            options: [&shared, own].into_iter().flat_map(|t| settings(t, None)).collect(),
            grid: Vec::new(),
        });
    }
    Ok(presets)
}

/// The values of a table; from lists, the one in `column`.
fn settings(table: &Table, column: Option<usize>) -> Vec<Setting> {
    let source = table.get("source").and_then(Value::as_str).unwrap_or_default();
    let value = |value: &Value| match (value, column) {
        (Value::Array(list), Some(column)) => list.get(column).cloned(),
        (value, _) => Some(value.clone()),
    };
    let options = table.iter().filter(|(key, _)| *key != "source");
    let setting = |(option, v): (&String, &Value)| {
        Some(Setting { option: option.clone(), value: value(v)?, source: source.to_owned() })
    };
    options.filter_map(setting).collect()
}

/// The options that the list of presets shows.
const NOTABLE: [&str; 4] = ["lr", "epochs", "batch-size", "density"];

pub fn list(args: PresetsArgs) -> Result<()> {
    let mut presets = all()?;
    if let Some(name) = &args.name {
        presets.retain(|preset| preset.name == *name || preset.name.starts_with(&format!("{name}/")));
        if presets.is_empty() {
            find(name)?;
        }
    }
    if args.json {
        return output::json_line(&presets);
    }
    if presets.len() > 1 {
        let row = |preset: &Preset| {
            let text = |s: &Setting| format!("--{} {}", s.option, s.value);
            let notable = preset.options.iter().filter(|s| NOTABLE.contains(&s.option.as_str())).map(text);
            let searched = preset.grid.iter().map(|s| format!("--{} one of {}", s.option, s.value));
            vec![preset.name.clone(), notable.chain(searched).collect::<Vec<_>>().join("  ")]
        };
        output::print(output::table(&["PRESET", "OF ITS OPTIONS"], &presets.iter().map(row).collect::<Vec<_>>()))?;
        return output::print("\nsparta-cli presets NAME shows all options of one, and where each comes from");
    }
    for preset in &presets {
        output::print(&preset.name)?;
        let row = |s: &Setting| vec![format!("  --{}", s.option), s.value.to_string(), s.source.clone()];
        let grid = |s: &Setting| vec![format!("  --{}", s.option), format!("one of {}", s.value), s.source.clone()];
        let rows: Vec<Vec<String>> = preset.options.iter().map(row).chain(preset.grid.iter().map(grid)).collect();
        output::print(output::table(&["  option", "value", "from"], &rows) + "\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(preset: &Preset, option: &str) -> Option<String> {
        let mut found = preset.options.iter().filter(|s| s.option == option);
        let value = found.next().and_then(|s| argument_value(&s.value));
        assert!(found.next().is_none(), "{option} twice in {}", preset.name);
        value
    }

    /// Cells of Table 12, copied from the paper one by one.
    #[test]
    fn presets_have_the_values_of_the_tables() {
        let presets = all().unwrap();
        assert_eq!(presets.len(), 2 * 4 * 6 + 4);
        for (name, option, expected) in [
            ("imdb/gemma-2b/full", "max-grad-norm", "10"),
            ("imdb/gemma-2b-it/full", "max-grad-norm", "50"),
            ("imdb/mistral-7b/full", "dropout", "0.15"),
            ("imdb/mistral-7b-it/full", "batch-size", "36"),
            ("imdb/gemma-2b/sparta-5", "lr", "0.000015"),
            ("imdb/gemma-2b-it/sparta-5", "lr", "0.000008"),
            ("imdb/gemma-2b/sparta-0.5", "lr", "0.0001"),
            ("imdb/gemma-2b/sparta-0.5", "density", "0.005"),
            ("imdb/mistral-7b/sparta-0.5", "lr", "0.000003"),
            ("imdb/mistral-7b/sparta-0.05", "lr", "0.00006"),
            ("imdb/gemma-2b/lora", "epochs", "3"),
            ("imdb/mistral-7b-it/lora", "max-grad-norm", "0"),
            ("imdb/mistral-7b/lora", "batch-size", "20"),
            ("imdb/gemma-2b-it/head", "epochs", "4"),
            ("imdb/mistral-7b-it/head", "lr", "0.0001"),
            ("imdb/mistral-7b-it/head", "model", "mistralai/Mistral-7B-Instruct-v0.3"),
            ("imdb/gemma-2b-it/head", "instruct", "true"),
            ("imdb/gemma-2b/head", "max-length", "384"),
            ("glue/gemma-2b/lora", "max-length", "256"),
            ("glue/mistral-7b/sparta-as-lora", "density", "0.00048"),
            ("glue/gemma-2b/head", "weight-decay", "0"),
        ] {
            let preset = find(&format!("paper/{name}")).unwrap();
            assert_eq!(value(&preset, option).as_deref(), Some(expected), "{name} {option}");
            let sourced = |s: &Setting| {
                s.source.contains("Table") || s.source.starts_with("section") || s.source.starts_with("appendix")
            };
            assert!(preset.options.iter().all(sourced), "{name}");
        }
    }

    #[test]
    fn prompts_and_answers_have_published_values() {
        let lora = find("sft/lora").unwrap();
        let found = ["task", "lr", "lora-r", "epochs"].map(|option| value(&lora, option).unwrap());
        assert_eq!(found, ["sft", "0.0003", "8", "3"]);
        assert!(lora.options.iter().all(|setting| !setting.source.is_empty()));
    }

    #[test]
    fn every_preset_is_a_command_line() {
        for preset in all().unwrap() {
            assert_eq!(preset.method(None).unwrap(), preset.method);
            let own: Vec<String> = preset
                .values()
                .iter()
                .filter(|(option, _)| *option != "density" && !option.starts_with("lora-"))
                .map(|(option, value)| format!("--{option}={value}"))
                .collect();
            let argv = ["sparta-cli".to_owned(), "run".into()].into_iter().chain(own);
            crate::parse::base_command().try_get_matches_from(argv).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
        }
    }

    #[test]
    fn open_values_and_other_methods_are_errors() {
        let glue = find("paper/glue/gemma-2b/lora").unwrap();
        let text = glue.check_grid(|option| option == "batch-size").unwrap_err().to_string();
        assert!(text.contains("leaves --lr open") && text.contains("Table 13"), "{text}");
        glue.check_grid(|_| true).unwrap();
        let text = glue.method(Some("full".into())).unwrap_err().to_string();
        assert!(text.contains("for method lora, not full"), "{text}");
        let text = find("paper/imdb/gemma-2b/sparta-50").unwrap_err().to_string();
        assert!(text.contains("did you mean paper/imdb/gemma-2b/sparta-5?"), "{text}");
    }
}
