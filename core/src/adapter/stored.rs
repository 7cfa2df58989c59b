//! The method of an adapter that no method plugin made: it trains what the file holds.

use super::peft::Lora;
use crate::plugin::PluginSet;
use crate::{Error, Result};
use sparta_plugin::graph::Value;
use sparta_plugin::method::{GraphBuilder, Method, MethodInfo, Options, Parameter, Selection, Site};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Selects what is stored, and delegates LoRA's arithmetic to the plugin `lora`.
pub struct StoredMethod {
    name: String,
    selections: BTreeMap<String, Selection>,
    lora: Option<(Lora, Arc<dyn Method>)>,
}

impl StoredMethod {
    /// `selections` by parameter; those not listed are frozen.
    pub fn new(name: &str, selections: BTreeMap<String, Selection>) -> StoredMethod {
        StoredMethod { name: name.to_owned(), selections, lora: None }
    }

    /// LoRA layers of PEFT and tensors that are stored whole.
    pub fn lora(lora: &Lora, whole: impl Iterator<Item = String>, plugins: &PluginSet) -> Result<StoredMethod> {
        let plugin = plugins.method("lora")?;
        let mut selections: BTreeMap<String, Selection> = whole.map(|name| (name, Selection::Dense)).collect();
        for (parameter, layer) in &lora.layers {
            selections.insert(parameter.clone(), Selection::Reparam { tensors: layer.tensors() });
        }
        Ok(StoredMethod { name: "lora".into(), selections, lora: Some((lora.clone(), plugin)) })
    }

    /// The plugin, and the site with this layer's options.
    fn layer(&self, site: &Site) -> std::result::Result<(&dyn Method, Site), sparta_plugin::Error> {
        let name = &site.parameter.name;
        let found = self.lora.as_ref().and_then(|(lora, plugin)| Some((lora.layers.get(name)?, plugin)));
        let (layer, plugin) = found.ok_or_else(|| sparta_plugin::Error(format!("{name} has no LoRA layer")))?;
        let options = Options::from([
            ("lora-r".to_owned(), layer.r.into()),
            ("lora-alpha".to_owned(), layer.alpha.into()),
            ("lora-dropout".to_owned(), 0.0.into()),
            // Already included in the file's alpha.
            ("lora-rs".to_owned(), false.into()),
        ]);
        Ok((plugin.as_ref(), Site { options, ..site.clone() }))
    }
}

impl Method for StoredMethod {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "what a file holds".into(),
            options: vec![],
            default_lr: 0.0,
        }
    }

    fn select(
        &self,
        parameters: &[Parameter],
        _: &Options,
    ) -> std::result::Result<Vec<Selection>, sparta_plugin::Error> {
        if let Some(unknown) = self.selections.keys().find(|name| !parameters.iter().any(|p| p.name == **name)) {
            return Err(sparta_plugin::Error(format!(
                "the adapter changes `{unknown}`, which the model does not have"
            )));
        }
        let selection = |p: &Parameter| self.selections.get(&p.name).cloned().unwrap_or(Selection::Frozen);
        Ok(parameters.iter().map(selection).collect())
    }

    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> std::result::Result<Value, sparta_plugin::Error> {
        let (plugin, site) = self.layer(site)?;
        plugin.forward(&site, graph, x, w, extra)
    }

    fn merge(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        w: Value,
        extra: &[Value],
    ) -> std::result::Result<Value, sparta_plugin::Error> {
        let (plugin, site) = self.layer(site)?;
        plugin.merge(&site, graph, w, extra)
    }
}

/// Selections of an adapter that stores index sets (`delta.NAME`) and whole tensors (`NAME`).
pub fn sparse_and_whole(
    parameters: &[Parameter],
    indices: &BTreeMap<String, Vec<u32>>,
    values: &BTreeMap<String, Vec<f32>>,
) -> Result<BTreeMap<String, Selection>> {
    let mut selections = BTreeMap::new();
    for name in values.keys() {
        let parameter = name.strip_prefix("delta.").unwrap_or(name);
        let Some(p) = parameters.iter().find(|p| p.name == parameter) else {
            return Err(Error::Weights(format!("the adapter changes `{parameter}`, which the model does not have")));
        };
        let selection = match indices.get(parameter) {
            // The set is given, so the probability is not used; it must only be in (0, 1].
            Some(set) => Selection::Sparse { probability: (set.len() as f64 / p.numel() as f64).clamp(1e-300, 1.0) },
            None if name != parameter => {
                return Err(Error::Weights(format!("the adapter holds `{name}` without its index set")));
            }
            None => Selection::Dense,
        };
        selections.insert(parameter.to_owned(), selection);
    }
    Ok(selections)
}
