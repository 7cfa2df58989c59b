//! Trains the scalars of linear layers whose magnitudes are the largest (PEFT's Super-Tuning), or the smallest, and the head: the
//! nearest neighbours of SpaRTA's random choice.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct ByMagnitude;

sparta_plugin::options! {
    struct Settings {
        /// Fraction of the weights of linear layers to train
        share: f64 = 0.05, Above(0.0, 1.0);
        /// Train the smallest ones instead of the largest
        smallest: bool = false;
        /// Compare the weights of all layers with each other
        whole_model: bool = false;
    }
}

sparta_plugin::export_method!(ByMagnitude);

impl Method for ByMagnitude {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "magnitude".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains the weights with the largest or smallest magnitudes".into(),
            options: Settings::declared(),
            default_lr: 1.5e-5,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { share, smallest, whole_model } = Settings::read(options)?;
        let magnitude = Magnitude {
            share,
            order: if smallest { Order::Smallest } else { Order::Largest },
            scope: if whole_model { Scope::Model } else { Scope::Tensor },
        };
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            role if role.is_projection() => Selection::Magnitude(magnitude),
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }
}
