//! (IA)3 (Liu et al., 2022): trained vectors that scale keys, values and the input of the MLP's last layer, as PEFT's
//! `IA3Config` has them for a Llama.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Layout, Linear, Mul, Transpose};
use sparta_plugin::method::*;

struct Ia3;

sparta_plugin::export_method!(Ia3);

impl Method for Ia3 {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "ia3".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "(IA)3: trains scales of keys, values and the MLP's hidden layer".into(),
            options: vec![],
            default_lr: 3e-3,
        }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        let scales = |n: usize| Selection::Reparam {
            tensors: vec![ExtraTensor::new("ia3", [n], Init::Constant { value: 1.0 })],
        };
        let choose = |p: &Parameter| match (p.role, &p.shape[..]) {
            (Role::Head, _) => Selection::Dense,
            (Role::KProj | Role::VProj, &[out, _]) => scales(out),
            (Role::DownProj, &[_, input]) => scales(input),
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
        let product = Linear::plain(Layout::Nt);
        if site.parameter.role == Role::DownProj {
            let x = graph.one(Mul {}, &[x, extra[0]])?;
            return graph.one(product, &[x, w]);
        }
        let y = graph.one(product, &[x, w])?;
        graph.one(Mul {}, &[y, extra[0]])
    }

    /// Keys and values are scaled with their bias.
    fn forward_with_bias(
        &self,
        _: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<Value, Error> {
        let product = Linear { bias: true, ..Linear::plain(Layout::Nt) };
        let y = graph.one(product, &[x, w, bias])?;
        graph.one(Mul {}, &[y, extra[0]])
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        if site.parameter.role == Role::DownProj {
            return graph.one(Mul {}, &[w, extra[0]]);
        }
        let columns = graph.one(Transpose {}, &[w])?;
        let scaled = graph.one(Mul {}, &[columns, extra[0]])?;
        graph.one(Transpose {}, &[scaled])
    }

    fn merge_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<[Value; 2], Error> {
        Ok([self.merge(site, graph, w, extra)?, graph.one(Mul {}, &[bias, extra[0]])?])
    }
}
