//! Trains every parameter of the model.

use sparta_plugin::Error;
use sparta_plugin::method::{Method, MethodInfo, Options, Parameter, Role, Selection};

struct Full;

sparta_plugin::options! {
    struct Settings {
        /// Train the token embeddings, too
        train_embeddings: bool = true;
    }
}

impl Method for Full {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "full".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "full fine-tuning: trains every parameter".into(),
            options: Settings::declared(),
            default_lr: 1e-5,
        }
    }

    /// Everything but a vocabulary head that the classification head replaces.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { train_embeddings } = Settings::read(options)?;
        let classifies = parameters.iter().any(|p| p.role == Role::Head);
        let choose = |p: &Parameter| match p.role {
            Role::Embedding if !train_embeddings => Selection::Frozen,
            Role::LmHead if classifies => Selection::Frozen,
            _ => Selection::Dense,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}

sparta_plugin::export_method!(entry: Full);

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_plugin::graph::DType;

    fn select(names: &[(&str, Role)], embeddings: serde_json::Value) -> Result<Vec<Selection>, Error> {
        let parameter = |&(name, role): &(&str, Role)| Parameter {
            name: name.into(),
            shape: vec![2, 8],
            dtype: DType::BF16,
            role,
            layer: None,
        };
        let parameters: Vec<Parameter> = names.iter().map(parameter).collect();
        Full.select(&parameters, &Options::from([("train-embeddings".into(), embeddings)]))
    }

    const CLASSIFIER: &[(&str, Role)] = &[
        ("model.embed_tokens.weight", Role::Embedding),
        ("model.layers.0.self_attn.q_proj.weight", Role::QProj),
        ("model.layers.0.self_attn.q_proj.bias", Role::Bias),
        ("model.norm.weight", Role::Norm),
        ("lm_head.weight", Role::LmHead),
        ("score.weight", Role::Head),
    ];

    #[test]
    fn everything_is_trained_except_a_replaced_vocabulary_head() {
        use Selection::*;
        assert_eq!(select(CLASSIFIER, true.into()).unwrap(), [Dense, Dense, Dense, Dense, Frozen, Dense]);
        assert_eq!(select(CLASSIFIER, false.into()).unwrap(), [Frozen, Dense, Dense, Dense, Frozen, Dense]);
        let causal = &CLASSIFIER[..5];
        assert_eq!(select(causal, true.into()).unwrap(), [Dense, Dense, Dense, Dense, Dense]);
    }

    #[test]
    fn a_missing_option_is_an_error() {
        assert!(select(CLASSIFIER, serde_json::Value::Null).unwrap_err().0.contains("train-embeddings"));
    }
}
