//! Low-rank additions under delta dropout, as DARE (Yu et al., 2024) drops and rescales a finished delta, here in
//! training: `W' = W + dropout((alpha / r) B A)`. In each step every element of the delta is left out with probability
//! p, and what stays is divided by 1 - p; evaluation and merging take the whole delta.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, Dropout, Layout, Linear};
use sparta_plugin::method::*;

struct DeltaDropout;

sparta_plugin::export_method!(DeltaDropout);

sparta_plugin::options! {
    struct Settings {
        /// Rank
        delta_r: usize = 8, 1..=1024;
        /// Scale: additions are multiplied by alpha / r
        delta_alpha: f64 = 16.0, Above(0.0, 1e6);
        /// Share of each delta that a step leaves out
        delta_dropout: f64 = 0.5, 0.0..=0.99;
    }
}

impl Method for DeltaDropout {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "delta-dropout".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains low-rank additions to q and v, a random part of which is left out in each step".into(),
            options: Settings::declared(),
            default_lr: 2e-4,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let r = Settings::read(options)?.delta_r;
        let choose = |p: &Parameter| match (p.role, &p.shape[..]) {
            (Role::Head, _) => Selection::Dense,
            (Role::QProj | Role::VProj, &[out, input]) => Selection::Reparam {
                tensors: vec![
                    ExtraTensor::new("delta_A", [r, input], Init::Uniform { bound: 1.0 / (input as f64).sqrt() }),
                    ExtraTensor::new("delta_B", [out, r], Init::Zeros),
                ],
            },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let p = Settings::read(&site.options)?.delta_dropout as f32;
        let &[a, b] = extra else { return Err(Error::new("expected A and B")) };
        let mut delta = graph.one(product(site, false)?, &[b, a])?;
        if site.training && p > 0.0 {
            let rng = graph.rng()?;
            delta = graph.one(Dropout { p, salt: salt(&site.parameter) }, &[delta, rng])?;
        }
        let changed = graph.one(Add {}, &[delta, w])?;
        graph.one(Linear::plain(Layout::Nt), &[x, changed])
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let &[a, b] = extra else { return Err(Error::new("expected A and B")) };
        graph.one(product(site, true)?, &[b, a, w])
    }
}

fn product(site: &Site, residual: bool) -> Result<Linear, Error> {
    let Settings { delta_r, delta_alpha, .. } = Settings::read(&site.options)?;
    let scale = (delta_alpha / delta_r as f64) as f32;
    Ok(Linear { scale, residual, ..Linear::plain(Layout::Nn) })
}

/// Different for every layer, in the upper half of the range, which the host leaves to methods.
fn salt(parameter: &Parameter) -> u32 {
    1 << 31 | (parameter.layer.unwrap_or(0) as u32) << 1 | u32::from(parameter.role == Role::VProj)
}
