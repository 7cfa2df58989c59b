//! LT-SFT (Ansell et al., 2022): trains the model for some steps, takes the weights that have changed most, starts
//! again from the original model, and trains only these and the head.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct LtSft;

sparta_plugin::export_method!(LtSft);

sparta_plugin::options! {
    struct Settings {
        /// Fraction of the weights of linear layers to train
        share: f64 = 0.05, Above(0.0, 1.0);
        /// Steps of the preliminary training run
        first_steps: u32 = 100, 1..=1_000_000;
    }
}

impl Method for LtSft {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "lt-sft".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "LT-SFT: trains the weights that a preliminary training run changes most".into(),
            options: Settings::declared(),
            default_lr: 5e-5,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { share, first_steps } = Settings::read(options)?;
        let scored =
            Scored { share, order: Order::Largest, scope: Scope::Model, score: Score::Change { steps: first_steps } };
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            role if role.is_projection() => Selection::Scored(scored),
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}
