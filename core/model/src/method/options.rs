//! Checks the user's options for a method or a task against what its plugin declares.

use crate::error::{Error, Result};
use serde_json::Value as Json;
use sparta_plugin::method::{OptionInfo, OptionKind, Options};
use std::collections::BTreeMap;
use std::fmt::Display;

/// A value as the user gave it.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// On the command line.
    Text(String),
    /// In a configuration file.
    Typed(Json),
}

/// Values of all declared options of `owner`, such as `method lora`: the given ones checked, the others at their
/// defaults.
///
/// Errors: an unknown option (the message names the nearest), a wrong type, a value out of range or NaN, a required
/// option that is missing.
pub fn check(owner: &str, declared: &[OptionInfo], given: &BTreeMap<String, Given>) -> Result<Options> {
    for name in given.keys() {
        if !declared.iter().any(|option| option.name == *name) {
            return Err(Error::Usage(unknown(owner, declared, name)));
        }
    }
    let value = |option: &OptionInfo| {
        let value = match (given.get(&option.name), &option.default) {
            (Some(given), _) => check_value(option, given).map_err(Error::Usage)?,
            (None, Some(default)) => default.clone(),
            (None, None) => {
                return Err(Error::Usage(format!("{owner}: --{} is required: {}", option.name, option.help)));
            }
        };
        Ok((option.name.clone(), value))
    };
    declared.iter().map(value).collect()
}

/// Converts the options of a stored configuration for [`check`]; strings may come from the command line.
pub fn given(options: &BTreeMap<String, Json>) -> BTreeMap<String, Given> {
    let given = |value: &Json| match value {
        Json::String(text) => Given::Text(text.clone()),
        typed => Given::Typed(typed.clone()),
    };
    options.iter().map(|(name, value)| (name.clone(), given(value))).collect()
}

fn unknown(owner: &str, declared: &[OptionInfo], name: &str) -> String {
    let names = declared.iter().map(|option| option.name.as_str());
    let message = match nearest(name, names.clone()) {
        Some(near) => format!("{owner} has no option `{name}`; did you mean `{near}`?"),
        None => format!("{owner} has no option `{name}`."),
    };
    match names.collect::<Vec<_>>() {
        names if names.is_empty() => message + " It has no options.",
        names => message + &format!(" Its options are {}.", names.join(", ")),
    }
}

/// The known name most similar to `name`, if any is similar.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |known: &str| strsim::jaro_winkler(name, known);
    known.max_by(|a, b| similarity(a).total_cmp(&similarity(b))).filter(|best| similarity(best) > 0.7)
}

/// Checks one value against the option's type and range.
pub fn check_value(option: &OptionInfo, given: &Given) -> std::result::Result<Json, String> {
    let fail = |expected: &dyn Display| match given {
        Given::Text(text) => format!("--{}: expected {expected}, got `{text}`", option.name),
        Given::Typed(json) => format!("{}: expected {expected}, got {json}", option.name),
    };
    match &option.kind {
        OptionKind::Float { min, max, min_open } => {
            let expected = format!("a number in {}{min}, {max}]", if *min_open { '(' } else { '[' });
            let number = match given {
                Given::Text(text) => text.trim().parse::<f64>().ok(),
                Given::Typed(json) => json.as_f64(),
            };
            // Written so that NaN is out of range.
            let in_range = |&x: &f64| x <= *max && if *min_open { x > *min } else { x >= *min };
            number.filter(in_range).map(Json::from).ok_or_else(|| fail(&expected))
        }
        OptionKind::Int { min, max } => {
            let number = match given {
                Given::Text(text) => text.trim().parse::<i64>().ok(),
                Given::Typed(json) => json.as_i64(),
            };
            let expected = format!("a whole number from {min} to {max}");
            number.filter(|x| (min..=max).contains(&x)).map(Json::from).ok_or_else(|| fail(&expected))
        }
        OptionKind::Bool => {
            let flag = match given {
                Given::Text(text) => text.trim().parse::<bool>().ok(),
                Given::Typed(json) => json.as_bool(),
            };
            flag.map(Json::from).ok_or_else(|| fail(&"true or false"))
        }
        OptionKind::Text => match given {
            Given::Text(text) => Ok(Json::from(text.as_str())),
            Given::Typed(Json::String(text)) => Ok(Json::from(text.as_str())),
            Given::Typed(_) => Err(fail(&"a text")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn declared() -> Vec<OptionInfo> {
        let option = |name: &str, kind, default: Json| OptionInfo {
            name: name.into(),
            help: "helps".into(),
            kind,
            default: Some(default).filter(|default| !default.is_null()),
        };
        vec![
            option("density", OptionKind::Float { min: 0.0, max: 1.0, min_open: true }, json!(0.05)),
            option("lora-r", OptionKind::Int { min: 1, max: 1024 }, json!(8)),
            option("lora-alpha", OptionKind::Float { min: 0.0, max: 1e6, min_open: false }, json!(16.0)),
            option("train-embeddings", OptionKind::Bool, json!(true)),
            option("targets", OptionKind::Text, Json::Null),
        ]
    }

    fn given(name: &str, given: Given) -> Result<Options> {
        let targets = ("targets".to_owned(), Given::Text("all".into()));
        check("method m", &declared(), &BTreeMap::from([targets, (name.to_owned(), given)]))
    }

    fn text(name: &str, value: &str) -> Result<Json> {
        Ok(given(name, Given::Text(value.into()))?[name].clone())
    }

    fn typed(name: &str, value: Json) -> Result<Json> {
        Ok(given(name, Given::Typed(value))?[name].clone())
    }

    #[track_caller]
    fn refused(outcome: Result<Json>, parts: &[&str]) {
        let message = outcome.unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "{message}"));
    }

    #[test]
    fn values_of_both_sources_get_their_type() {
        assert_eq!(text("density", "0.1").unwrap(), json!(0.1));
        assert_eq!(text("density", "1").unwrap(), json!(1.0));
        assert_eq!(typed("density", json!(1)).unwrap(), json!(1.0));
        assert_eq!(text("lora-r", "16").unwrap(), json!(16));
        assert_eq!(typed("train-embeddings", json!(false)).unwrap(), json!(false));
        assert_eq!(text("train-embeddings", "false").unwrap(), json!(false));
        assert_eq!(typed("targets", json!("q,v")).unwrap(), json!("q,v"));
        assert_eq!(text("lora-alpha", "0").unwrap(), json!(0.0));
    }

    #[test]
    fn defaults_are_filled_in() {
        let options = given("density", Given::Text("0.5".into())).unwrap();
        assert_eq!(
            serde_json::to_value(options).unwrap(),
            json!({
                "density": 0.5, "lora-r": 8, "lora-alpha": 16.0, "train-embeddings": true, "targets": "all",
            })
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in ["0", "-0.1", "1.0001", "nan", "NaN", "inf", "", "five"] {
            refused(text("density", bad), &["--density", "a number in (0, 1]", &format!("`{bad}`")]);
        }
        for bad in ["0", "1025", "8.5", "x", "99999999999999999999"] {
            refused(text("lora-r", bad), &["--lora-r", "a whole number from 1 to 1024", bad]);
        }
        refused(text("lora-alpha", "-1"), &["[0, 1000000]"]);
    }

    #[test]
    fn wrong_types_are_refused() {
        refused(typed("density", json!("0.1")), &["density", "a number", "\"0.1\""]);
        refused(typed("lora-r", json!(8.0)), &["a whole number", "8.0"]);
        refused(typed("train-embeddings", json!(1)), &["true or false"]);
        refused(typed("targets", json!(["q"])), &["a text"]);
        refused(text("train-embeddings", "maybe"), &["true or false", "maybe"]);
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        refused(text("desnity", "0.1"), &["no option `desnity`", "did you mean `density`?"]);
        let message = text("zzz", "1").unwrap_err().to_string();
        assert!(message.contains("no option `zzz`. Its options are density, lora-r"), "{message}");
    }

    #[test]
    fn a_missing_required_option_is_refused() {
        let message = check("method m", &declared(), &BTreeMap::new()).unwrap_err().to_string();
        assert!(message.contains("--targets is required: helps"), "{message}");
    }
}
