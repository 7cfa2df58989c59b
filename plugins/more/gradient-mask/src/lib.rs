//! Trains the weights whose gradients on the first batches are the largest, and the head: by the Fisher information
//! (Sung et al., 2021), by what SNIP (Lee et al., 2019) calls connection sensitivity, or by the gradient alone.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct GradientMask;

sparta_plugin::export_method!(GradientMask);

sparta_plugin::options! {
    struct Settings {
        /// Fraction of the weights of linear layers to train
        share: f64 = 0.005, Above(0.0, 1.0);
        /// fisher (g^2), snip (|w g|) or gradient (|g|)
        score: String = "fisher";
        /// Batches to sum scores over
        score_batches: u32 = 8, 1..=1_000_000;
    }
}

impl Method for GradientMask {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "gradient-mask".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains the weights with the largest gradients at the start".into(),
            options: Settings::declared(),
            default_lr: 5e-5,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { share, score, score_batches: batches } = Settings::read(options)?;
        let score = match score.as_str() {
            "fisher" => Score::Gradient { batches, squared: true },
            "gradient" => Score::Gradient { batches, squared: false },
            "snip" => Score::WeightGradient { batches },
            other => return Err(Error(format!("score: expected fisher, snip or gradient, got `{other}`"))),
        };
        let scored = Scored { share, order: Order::Largest, scope: Scope::Model, score };
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            role if role.is_projection() => Selection::Scored(scored),
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}
