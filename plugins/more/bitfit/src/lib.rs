//! BitFit (Ben Zaken et al., 2022): trains the biases that a model has, and the head.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct BitFit;

sparta_plugin::export_method!(BitFit);

impl Method for BitFit {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "bitfit".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "BitFit: trains the model's biases".into(),
            options: vec![],
            default_lr: 1e-3,
        }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        if !parameters.iter().any(|p| p.role == Role::Bias) {
            return Err(Error::new("bitfit trains biases, but this model has none; Qwen 2 has them"));
        }
        let choose = |p: &Parameter| match p.role {
            Role::Head | Role::Bias => Selection::Dense,
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}
