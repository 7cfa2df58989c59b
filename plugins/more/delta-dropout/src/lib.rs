//! Low-rank additions under delta dropout, as DARE (Yu et al., 2024) drops and rescales a finished delta, here in training:
//! `W' = W + dropout((alpha / r) B A)`. In each step every element of the delta is left out with probability p, and what stays
//! is divided by 1 - p; evaluation and merging take the whole delta.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, Dropout, Layout, Linear};
use sparta_plugin::method::*;

struct DeltaDropout;

sparta_plugin::export_method!(DeltaDropout);

impl Method for DeltaDropout {
    fn describe(&self) -> MethodInfo {
        let float = |max, min_open| OptionKind::Float { min: 0.0, max, min_open };
        MethodInfo {
            name: "delta-dropout".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains low-rank additions to q and v, a random part of which is left out in each step".into(),
            options: vec![
                OptionInfo::new("delta-r", "Rank", OptionKind::Int { min: 1, max: 1024 }, 8),
                OptionInfo::new("delta-alpha", "Scale: additions count alpha / r", float(1e6, true), 16.0),
                OptionInfo::new("delta-dropout", "Share of each delta that a step leaves out", float(0.99, false), 0.5),
            ],
            default_lr: 2e-4,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let r = number(options, "delta-r")? as usize;
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
        let p = number(&site.options, "delta-dropout")? as f32;
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
    let scale = (number(&site.options, "delta-alpha")? / number(&site.options, "delta-r")?) as f32;
    Ok(Linear { scale, residual, ..Linear::plain(Layout::Nn) })
}

/// Different for every layer, in the upper half of the range, which the host leaves to methods.
fn salt(parameter: &Parameter) -> u32 {
    1 << 31 | (parameter.layer.unwrap_or(0) as u32) << 1 | u32::from(parameter.role == Role::VProj)
}
