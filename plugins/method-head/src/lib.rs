//! Trains the classification head on frozen features: the baseline that every other method must beat.

use sparta_plugin::Error;
use sparta_plugin::method::{Method, MethodInfo, Options, Parameter, Role, Selection};

struct Head;

impl Method for Head {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "head".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains the output head only".into(),
            options: vec![],
            default_lr: 2e-4,
        }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        // A vocabulary head that the classification head replaces is not an output.
        let head = [Role::Head, Role::LmHead].into_iter().find(|role| parameters.iter().any(|p| p.role == *role));
        let head = head.ok_or(
            "the vocabulary head of this model is its embedding matrix (tie_word_embeddings), so it cannot be \
             trained alone; use another method",
        )?;
        let choose = |p: &Parameter| if p.role == head { Selection::Dense } else { Selection::Frozen };
        Ok(parameters.iter().map(choose).collect())
    }
}

sparta_plugin::export_method!(entry: Head);

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_plugin::graph::DType;

    #[test]
    fn only_the_head_is_trained() {
        let parameter =
            |name: &str, role| Parameter { name: name.into(), shape: vec![2, 8], dtype: DType::F32, role, layer: None };
        let model = [
            parameter("model.embed_tokens.weight", Role::Embedding),
            parameter("model.norm.weight", Role::Norm),
            parameter("lm_head.weight", Role::LmHead),
            parameter("score.weight", Role::Head),
        ];
        let selections = Head.select(&model, &Options::new()).unwrap();
        use Selection::*;
        assert_eq!(selections, [Frozen, Frozen, Frozen, Dense]);
        assert_eq!(Head.select(&model[..3], &Options::new()).unwrap(), [Frozen, Frozen, Dense]);
        assert!(Head.select(&model[..2], &Options::new()).unwrap_err().0.contains("tie_word_embeddings"));
    }
}
