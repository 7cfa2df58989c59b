//! LT-SFT (Ansell et al., 2022): trains the model for some steps, takes the weights that have changed most, starts again from the
//! model as it was, and trains these alone, with the head.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct LtSft;

sparta_plugin::export_method!(LtSft);

impl Method for LtSft {
    fn describe(&self) -> MethodInfo {
        let share = OptionKind::Float { min: 0.0, max: 1.0, min_open: true };
        let steps = OptionKind::Int { min: 1, max: 1_000_000 };
        MethodInfo {
            name: "lt-sft".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "LT-SFT: trains the weights that a first training changes most".into(),
            options: vec![
                OptionInfo::new("share", "Fraction of the weights of linear layers that is trained", share, 0.05),
                OptionInfo::new("first-steps", "Steps of the first training", steps, 100),
            ],
            default_lr: 5e-5,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let scored = Scored {
            share: number(options, "share")?,
            order: Order::Largest,
            scope: Scope::Model,
            score: Score::Change { steps: number(options, "first-steps")? as u32 },
        };
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            role if role.is_projection() => Selection::Scored(scored),
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}
