//! Trains the weights whose gradients on the first batches are the largest, and the head: by the Fisher information (Sung et al.,
//! 2021), by what SNIP (Lee et al., 2019) calls connection sensitivity, or by the gradient alone.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct GradientMask;

sparta_plugin::export_method!(GradientMask);

impl Method for GradientMask {
    fn describe(&self) -> MethodInfo {
        let share = OptionKind::Float { min: 0.0, max: 1.0, min_open: true };
        let batches = OptionKind::Int { min: 1, max: 1_000_000 };
        MethodInfo {
            name: "gradient-mask".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains the weights with the largest gradients at the start".into(),
            options: vec![
                OptionInfo::new("share", "Fraction of the weights of linear layers that is trained", share, 0.005),
                OptionInfo::new("score", "fisher (g^2), snip (|w g|) or gradient (|g|)", OptionKind::Text, "fisher"),
                OptionInfo::new("score-batches", "Batches that scores are summed over", batches, 8),
            ],
            default_lr: 5e-5,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let batches = number(options, "score-batches")? as u32;
        let score = match text(options, "score")? {
            "fisher" => Score::Gradient { batches, squared: true },
            "gradient" => Score::Gradient { batches, squared: false },
            "snip" => Score::WeightGradient { batches },
            other => return Err(Error(format!("score: expected fisher, snip or gradient, got `{other}`"))),
        };
        let share = number(options, "share")?;
        let scored = Scored { share, order: Order::Largest, scope: Scope::Model, score };
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            role if role.is_projection() => Selection::Scored(scored),
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}
