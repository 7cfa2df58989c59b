//! VeRA (Kopiczko et al., 2024): `y = x W^T + b * (B (d * (A x)))` with random A `[r, in]` and B `[out, r]` that all
//! layers share and that are not trained, and trained vectors d and b, as in PEFT's `VeraConfig`.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, Layout, Linear, Mul, Slice, Transpose};
use sparta_plugin::method::*;

struct Vera;

sparta_plugin::options! {
    struct Settings {
        /// Rank of the projections
        vera_r: usize = 256, 1..=65_536;
        /// Initial value of the scales between them
        vera_d: f64 = 0.1, Above(0.0, 1e3);
    }
}

sparta_plugin::export_method!(Vera);

fn is_target(parameter: &Parameter) -> bool {
    matches!(parameter.role, Role::QProj | Role::VProj)
}

impl Method for Vera {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "vera".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "VeRA: trains scales between random projections that q and v of all layers share".into(),
            options: Settings::declared(),
            default_lr: 4e-3,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { vera_r: r, vera_d: value } = Settings::read(options)?;
        let largest = |side: usize| {
            let sizes = parameters.iter().filter(|p| is_target(p)).filter_map(|p| p.shape.get(side));
            sizes.copied().max().unwrap_or(0)
        };
        let (out, input) = (largest(0), largest(1));
        // Kaiming's uniform distribution, by the columns of each.
        let bound = |columns: usize| Init::Uniform { bound: (6.0 / columns as f64).sqrt() };
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            _ if is_target(p) => Selection::Reparam {
                tensors: vec![
                    ExtraTensor::new("vera_A", [r, input], bound(input)).frozen().shared(),
                    ExtraTensor::new("vera_B", [out, r], bound(r)).frozen().shared(),
                    ExtraTensor::new("vera_d", [r], Init::Constant { value }),
                    ExtraTensor::new("vera_b", [p.shape[0]], Init::Zeros),
                ],
            },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn forward(
        &self,
        _: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let Projections { a, b, scales: [inner, outer] } = projections(graph, w, extra)?;
        let product = Linear::plain(Layout::Nt);
        let down = graph.one(product.clone(), &[x, a])?;
        let down = graph.one(Mul {}, &[down, inner])?;
        let up = graph.one(product.clone(), &[down, b])?;
        let change = graph.one(Mul {}, &[up, outer])?;
        let y = graph.one(product, &[x, w])?;
        graph.one(Add {}, &[y, change])
    }

    fn merge(&self, _: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let Projections { a, b, scales: [inner, outer] } = projections(graph, w, extra)?;
        let b = graph.one(Mul {}, &[b, inner])?;
        let product = graph.one(Linear::plain(Layout::Nn), &[b, a])?;
        let columns = graph.one(Transpose {}, &[product])?;
        let scaled = graph.one(Mul {}, &[columns, outer])?;
        let change = graph.one(Transpose {}, &[scaled])?;
        graph.one(Add {}, &[change, w])
    }
}

struct Projections {
    a: Value,
    b: Value,
    /// d `[r]` and b `[out]`.
    scales: [Value; 2],
}

/// The parts of A and B with this weight's dimensions.
fn projections(graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Projections, Error> {
    let &[a, b, inner, outer] = extra else { return Err(Error::new("expected A, B, d and b")) };
    let (w, r) = (graph.shape(w)?, graph.shape(inner)?[0]);
    let a = graph.one(Slice { rows: [0, r], columns: [0, w[1]] }, &[a])?;
    let b = graph.one(Slice { rows: [0, w[0]], columns: [0, r] }, &[b])?;
    Ok(Projections { a, b, scales: [inner, outer] })
}
