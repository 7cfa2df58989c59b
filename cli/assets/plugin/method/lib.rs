//! The method `@name@`: trains a scale of each output of some linear layers, and the head.

use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Layout, Linear, Mul, Transpose};
use sparta_plugin::method::*;

struct @type@;

sparta_plugin::export_method!(@type@);

sparta_plugin::options! {
    /// Each field becomes a command-line option, and its doc comment the help text.
    struct Settings {
        /// Scale the queries, too
        scale_queries: bool = false;
        /// Initial value of the scales
        scale_start: f64 = 1.0, 0.0..=10.0;
    }
}

impl Method for @type@ {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "@name@".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "trains a scale for each value and for each unit of the MLP's first layer".into(),
            options: Settings::declared(),
            default_lr: 3e-3,
        }
    }

    /// Decides what is trained in each tensor of the model.
    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Settings { scale_queries, scale_start } = Settings::read(options)?;
        let choose = |parameter: &Parameter| match parameter.role {
            Role::Head => Selection::Dense,
            Role::QProj if !scale_queries => Selection::Frozen,
            Role::QProj | Role::VProj | Role::UpProj => {
                let scale = ExtraTensor::new("scale", [parameter.shape[0]], Init::Constant { value: scale_start });
                Selection::Reparam { tensors: vec![scale] }
            }
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    /// What such a layer computes: `x` is `[T, in]`, `w` `[out, in]`, the result `[T, out]`.
    fn forward(
        &self,
        _site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let y = graph.one(Linear::plain(Layout::Nt), &[x, w])?;
        graph.one(Mul {}, &[y, scale(extra)?])
    }

    /// The weight `[out, in]` with which a plain layer computes the same result.
    fn merge(&self, _site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let columns = graph.one(Transpose {}, &[w])?;
        let scaled = graph.one(Mul {}, &[columns, scale(extra)?])?;
        graph.one(Transpose {}, &[scaled])
    }
}

fn scale(extra: &[Value]) -> Result<Value, Error> {
    extra.first().copied().ok_or_else(|| Error::new("expected the tensor `scale`, got none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_plugin::testing::layers;

    #[test]
    fn the_queries_are_an_option() {
        let with = Options::from([("scale-queries".to_owned(), true.into())]);
        assert_eq!(layers(&@type@, &Options::new()).unwrap().len(), 4);
        assert_eq!(layers(&@type@, &with).unwrap().len(), 6);
    }
}
