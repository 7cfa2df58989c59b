//! DoRA (Liu et al., 2024): `y = x W'^T m / |W'|` with `W' = W + (alpha / r) B A`, where m begins as the norms of the
//! rows of W, and no gradient goes through the norms of W' (section 4.3), as in PEFT's `use_dora`.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, ColumnSum, Detach, Function, Layout, Linear, Map, Mul, Transpose};
use sparta_plugin::method::*;

struct Dora;

sparta_plugin::options! {
    struct Settings {
        /// Rank
        dora_r: usize = 8, 1..=1024;
        /// Scale: additions are multiplied by alpha / r
        dora_alpha: f64 = 16.0, Above(0.0, 1e6);
    }
}

sparta_plugin::export_method!(Dora);

impl Method for Dora {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "dora".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "DoRA: trains low-rank changes of direction of q and v, and their rows' magnitudes".into(),
            options: Settings::declared(),
            default_lr: 2e-4,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let r = Settings::read(options)?.dora_r;
        let choose = |p: &Parameter| match (p.role, &p.shape[..]) {
            (Role::Head, _) => Selection::Dense,
            (Role::QProj | Role::VProj, &[out, input]) => Selection::Reparam {
                tensors: vec![
                    ExtraTensor::new("dora_A", [r, input], Init::Uniform { bound: 1.0 / (input as f64).sqrt() }),
                    ExtraTensor::new("dora_B", [out, r], Init::Zeros),
                    ExtraTensor::new("dora_magnitude", [out], Init::RowNorms),
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
        let (changed, scales) = changed(site, graph, w, extra)?;
        let y = graph.one(Linear::plain(Layout::Nt), &[x, changed])?;
        graph.one(Mul {}, &[y, scales])
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let (changed, scales) = changed(site, graph, w, extra)?;
        let columns = graph.one(Transpose {}, &[changed])?;
        let scaled = graph.one(Mul {}, &[columns, scales])?;
        graph.one(Transpose {}, &[scaled])
    }
}

/// `W'`, and the factor of each of its rows.
fn changed(site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<(Value, Value), Error> {
    let &[a, b, magnitude] = extra else { return Err(Error::new("expected A, B and magnitudes")) };
    let Settings { dora_r, dora_alpha } = Settings::read(&site.options)?;
    let scale = (dora_alpha / dora_r as f64) as f32;
    let product = Linear { scale, ..Linear::plain(Layout::Nn) };
    let change = graph.one(product, &[b, a])?;
    let changed = graph.one(Add {}, &[change, w])?;
    let squares = graph.one(Mul {}, &[changed, changed])?;
    let columns = graph.one(Transpose {}, &[squares])?;
    let sums = graph.one(ColumnSum {}, &[columns])?;
    let inverse = graph.one(Map { function: Function::Rsqrt }, &[sums])?;
    let inverse = graph.one(Detach {}, &[inverse])?;
    Ok((changed, graph.one(Mul {}, &[inverse, magnitude])?))
}
