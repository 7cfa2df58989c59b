//! The part of a plan that a backend plugin of ABI minor versions 0 and 1 understands. Such a plugin ignores unknown
//! parts, so these must not reach it.

use serde_json::Value as Json;

/// The operations of those versions, with their attributes.
const OPS: &[(&str, &[&str])] = &[
    ("accumulate", &[]),
    ("adam", &["beta1", "beta2", "eps", "weight_decay"]),
    ("add", &[]),
    ("attention", ATTENTION),
    ("attention_delta", &["heads", "head_dim"]),
    ("attention_grad", ATTENTION),
    ("cast", &["to"]),
    ("clip_coef", &["max_norm"]),
    ("column_sum", &[]),
    ("cross_entropy", &[]),
    ("cross_entropy_grad", &[]),
    ("dropout", &["p", "salt"]),
    ("embed", &["scale", "padding"]),
    ("embed_grad", &["vocab", "scale", "padding"]),
    ("fill", &["value", "shape"]),
    ("gated_act", &["act"]),
    ("gated_act_grad", &["act"]),
    ("gather", &[]),
    ("linear", &["layout", "scale", "bias", "residual"]),
    ("rms_norm", &["eps", "plus_one"]),
    ("rms_norm_grad", &["eps", "plus_one"]),
    ("rope", &["head_dim", "inverse"]),
    ("sampled_grad", &["scale", "sampling"]),
    ("scale", &["factor"]),
    ("scatter", &[]),
    ("scatter_rows", &["rows"]),
    ("select_rows", &[]),
    ("soft_cap", &["cap"]),
    ("soft_cap_grad", &["cap"]),
    ("store", &[]),
    ("sum_of_squares", &["slot"]),
];

const ATTENTION: &[&str] = &["heads", "kv_heads", "head_dim", "scale", "window", "soft_cap", "dropout", "salt"];

const EXTERNAL: &[&str] = &["name", "dtype", "shape"];

/// Checks a plan's JSON form. Errors: the operation that an earlier plugin would not understand, and why.
pub fn check(plan: &Json) -> Result<(), (String, String)> {
    let list = |key: &str| plan[key].as_array().into_iter().flatten();
    for external in list("externals") {
        if let Some(key) = stranger(external, EXTERNAL) {
            return Err(("prepare".into(), format!("it does not know the `{key}` of a tensor")));
        }
    }
    for op in list("calls").map(|call| &call["op"]) {
        let name = op["op"].as_str().unwrap_or_default();
        let Some((_, attributes)) = OPS.iter().find(|(known, _)| *known == name) else {
            return Err((name.into(), "it does not have this operation".into()));
        };
        if let Some(key) = stranger(op, attributes) {
            return Err((name.into(), format!("it does not know the attribute `{key}` of this operation")));
        }
    }
    Ok(())
}

/// An unknown key whose value is not the default.
fn stranger<'a>(object: &'a Json, known: &[&str]) -> Option<&'a str> {
    let ignorable = |value: &Json| matches!(value, Json::Null | Json::Bool(false)) || value.as_f64() == Some(0.0);
    let entries = object.as_object().into_iter().flatten();
    let mut strangers =
        entries.filter(|(key, value)| *key != "op" && !known.contains(&key.as_str()) && !ignorable(value));
    strangers.next().map(|(key, _)| key.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_was_there_then_passes() {
        let plan = |op: Json, external: Json| json!({ "externals": [external], "calls": [{ "op": op }] });
        let tensor = || json!({ "name": "x", "dtype": "f32", "shape": [2] });
        let add = || json!({ "op": "add" });
        let linear = |more: Json| json!({ "op": "linear", "layout": "nt", "scale": 1.0, "bias": false, "later": more });
        assert_eq!(check(&plan(linear(Json::Null), tensor())), Ok(()));
        let refused = |plan: Json| check(&plan).unwrap_err();
        assert!(refused(plan(linear("bf16".into()), tensor())).1.contains("`later`"));
        assert_eq!(refused(plan(json!({ "op": "levitate" }), tensor())).0, "levitate");
        let view = json!({ "name": "x", "dtype": "f32", "shape": [2], "offset": 64 });
        assert!(refused(plan(add(), view)).1.contains("`offset`"));
    }
}
