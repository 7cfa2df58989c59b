//! The model's tensors in a graph, with the method's changes applied.

use super::adaptation::{Adaptation, Form, TrainMode, Trained, delta_name, extra_name};
use crate::decoder::forward::{Layers, plain_linear};
use crate::{Error, Precision, Result};
use sparta_graph::ops::{Add, Cast, Dequantize, Embed, Scale, Scatter, SparseLinear, Store};
use sparta_graph::{DType, GradRequest, Graph, Value};
use sparta_plugin::graph::Recorder;
use sparta_plugin::method::Site;
use std::collections::{HashMap, HashSet};

/// The name of a sparse part's indices on the device.
pub fn index_name(parameter: &str) -> String {
    format!("index.{parameter}")
}

pub fn row_ptr_name(parameter: &str) -> String {
    format!("row_ptr.{parameter}")
}

pub fn base_name(parameter: &str) -> String {
    format!("base.{parameter}")
}

/// The elements of a sparse part by column, where each column's begin, and what the weight cannot represent of each
/// element ([`Adaptation::has_remainder`]).
pub fn order_name(parameter: &str) -> String {
    format!("order.{parameter}")
}

pub fn column_ptr_name(parameter: &str) -> String {
    format!("column_ptr.{parameter}")
}

pub fn remainder_name(parameter: &str) -> String {
    format!("remainder.{parameter}")
}

/// The rounded copy of a trained parameter that products read ([`Adaptation::is_shadowed`]).
pub fn shadow_name(parameter: &str) -> String {
    format!("shadow.{parameter}")
}

/// [`Layers`] of an adapted model.
pub struct AdaptedLayers<'a> {
    adaptation: &'a Adaptation,
    positions: HashMap<&'a str, usize>,
    values: HashMap<String, Value>,
    /// The random counter in training; `None` in an evaluation, which has no dropout.
    rng: Option<Value>,
}

impl<'a> AdaptedLayers<'a> {
    pub fn new(adaptation: &'a Adaptation, rng: Option<Value>) -> Self {
        let positions = adaptation.parameters.iter().enumerate().map(|(i, p)| (&*p.name, i)).collect();
        AdaptedLayers { adaptation, positions, values: HashMap::new(), rng }
    }

    fn position(&self, name: &str) -> Result<usize> {
        self.positions
            .get(name)
            .copied()
            .ok_or_else(|| Error::Config(format!("the forward pass asks for `{name}`, which the model does not have")))
    }

    fn external(&mut self, graph: &mut Graph, name: String, dtype: DType, shape: &[usize]) -> Value {
        *self.values.entry(name.clone()).or_insert_with(|| graph.external(name, dtype, shape))
    }

    /// A parameter as the device holds it: its values, or the words of its blocks.
    pub fn stored(&mut self, graph: &mut Graph, position: usize) -> Value {
        let adaptation = self.adaptation;
        let name = adaptation.parameters[position].name.clone();
        let ty = adaptation.device_type(position);
        self.external(graph, name, ty.dtype, &ty.shape)
    }

    /// The values of a parameter; if it is held in blocks, decoded anew at each call.
    fn parameter(&mut self, graph: &mut Graph, position: usize) -> Result<Value> {
        let stored = self.stored(graph, position);
        let Some(op) = self.adaptation.decoding(position) else { return Ok(stored) };
        let mut inputs = vec![stored];
        if op.overlay {
            inputs.extend(self.chosen(graph, position));
        }
        Ok(graph.one(op, &inputs)?)
    }

    /// Indices, base values and changes of the chosen elements of a sparse part.
    fn chosen(&mut self, graph: &mut Graph, position: usize) -> [Value; 3] {
        let adaptation = self.adaptation;
        let (name, n) = (&adaptation.parameters[position].name, [adaptation.sparse_size(position)]);
        let index = self.external(graph, index_name(name), DType::U32, &n);
        let base = self.external(graph, base_name(name), adaptation.device_dtype(position), &n);
        [index, base, self.external(graph, delta_name(name), DType::F32, &n)]
    }

    /// A parameter as products read it.
    fn weight(&mut self, graph: &mut Graph, position: usize) -> Result<Value> {
        let master = self.parameter(graph, position)?;
        if !self.adaptation.is_shadowed(position) {
            return Ok(master);
        }
        let name = shadow_name(&self.adaptation.parameters[position].name);
        if let Some(&shadow) = self.values.get(&name) {
            return Ok(shadow);
        }
        let shadow = graph.shadow(name.as_str(), self.adaptation.precision.products, master)?;
        self.values.insert(name, shadow);
        Ok(shadow)
    }

    /// The trained tensor itself.
    pub fn trained(&mut self, graph: &mut Graph, trained: &Trained) -> Value {
        self.external(graph, trained.name.clone(), DType::F32, &trained.shape)
    }

    /// What to differentiate with respect to for a trained tensor: the tensor, or the chosen elements of its weight.
    pub fn grad_request(&mut self, graph: &mut Graph, trained: &Trained) -> (Value, GradRequest) {
        if trained.form != Form::Sparse {
            return (self.trained(graph, trained), GradRequest::Dense);
        }
        let parameter = &self.adaptation.parameters[trained.parameter];
        let weight = self.stored(graph, trained.parameter);
        let index = self.external(graph, index_name(&parameter.name), DType::U32, &trained.shape);
        let row_ptr = match parameter.shape[..] {
            [rows, _] => Some(self.external(graph, row_ptr_name(&parameter.name), DType::U32, &[rows + 1])),
            _ => None,
        };
        (weight, GradRequest::Sampled { index, row_ptr })
    }

    /// Appends the writes that follow new values of a trained tensor ([`Adaptation::is_followed`]): of `base + delta`
    /// into the weight of a sparse part, and of rounded values into the copy that products read.
    pub fn follow(&mut self, graph: &mut Graph, trained: &Trained) -> Result<()> {
        let position = trained.parameter;
        match trained.form {
            _ if !self.adaptation.is_followed(trained) => Ok(()),
            Form::Sparse if self.adaptation.blocks_of(position).is_some() => self.store_remainder(graph, position),
            Form::Sparse => self.scatter(graph, position),
            Form::Dense | Form::Extra(_) => {
                let (master, shadow) = (self.trained(graph, trained), self.weight(graph, position)?);
                graph.apply(Store {}.into(), &[shadow, master])?;
                Ok(())
            }
        }
    }

    fn scatter(&mut self, graph: &mut Graph, position: usize) -> Result<()> {
        let weight = self.stored(graph, position);
        let mut operands = vec![weight];
        operands.extend(self.chosen(graph, position));
        let remainder = self.adaptation.has_remainder(position);
        if remainder {
            operands.push(self.stored_remainder(graph, position));
        }
        graph.apply(Scatter { remainder }.into(), &operands)?;
        Ok(())
    }

    /// Stores what will be rounded off the chosen elements when the weight is decoded with them.
    fn store_remainder(&mut self, graph: &mut Graph, position: usize) -> Result<()> {
        let [_, base, delta] = self.chosen(graph, position);
        let base = in_f32(graph, base)?;
        let sum = graph.one(Add {}, &[base, delta])?;
        let rounded = graph.one(Cast { to: self.adaptation.device_dtype(position) }, &[sum])?;
        let rounded = in_f32(graph, rounded)?;
        let negative = graph.one(Scale { factor: -1.0 }, &[rounded])?;
        let lost = graph.one(Add {}, &[sum, negative])?;
        let remainder = self.stored_remainder(graph, position);
        graph.apply(Store {}.into(), &[remainder, lost])?;
        Ok(())
    }

    fn stored_remainder(&mut self, graph: &mut Graph, position: usize) -> Value {
        let name = remainder_name(&self.adaptation.parameters[position].name);
        self.external(graph, name, DType::F32, &[self.adaptation.sparse_size(position)])
    }

    /// What products of x with a parameter miss because the weight cannot represent it: f32 `[T, out]`.
    fn remainder(&mut self, graph: &mut Graph, position: usize, x: Value) -> Result<Value> {
        let parameter = &self.adaptation.parameters[position];
        let (name, n) = (&parameter.name, [self.adaptation.sparse_size(position)]);
        let &[rows, columns] = &parameter.shape[..] else {
            return Err(Error::Config(format!("{name} is {:?}, expected a matrix", parameter.shape)));
        };
        let operands = [
            x,
            self.stored_remainder(graph, position),
            self.external(graph, index_name(name), DType::U32, &n),
            self.external(graph, row_ptr_name(name), DType::U32, &[rows + 1]),
            self.external(graph, order_name(name), DType::U32, &n),
            self.external(graph, column_ptr_name(name), DType::U32, &[columns + 1]),
        ];
        Ok(graph.one(SparseLinear { transposed: false }, &operands)?)
    }

    /// A plain linear layer plus what its weight cannot represent, rounded once after everything is added.
    fn linear_with_remainder(
        &mut self,
        graph: &mut Graph,
        position: usize,
        x: Value,
        bias: Option<Value>,
        residual: Option<Value>,
    ) -> Result<Value> {
        let weight = self.weight(graph, position)?;
        if !self.adaptation.has_remainder(position) {
            return plain_linear(graph, x, weight, bias, residual);
        }
        let mut remainder = self.remainder(graph, position, x)?;
        let output = graph.ty(residual.unwrap_or(x))?.dtype;
        if let Some(residual) = residual {
            remainder = graph.one(Add {}, &[remainder, residual])?;
        }
        let y = plain_linear(graph, x, weight, bias, Some(remainder))?;
        if output == DType::F32 { Ok(y) } else { Ok(graph.one(Cast { to: output }, &[y])?) }
    }

    fn extras(&mut self, graph: &mut Graph, position: usize) -> Vec<Value> {
        let adaptation = self.adaptation;
        let TrainMode::Reparam(tensors) = &adaptation.modes[position] else { return Vec::new() };
        let parameter = &adaptation.parameters[position].name;
        tensors.iter().map(|t| self.external(graph, extra_name(parameter, t), DType::F32, &t.shape)).collect()
    }

    fn site(&self, position: usize) -> Site {
        Site {
            parameter: self.adaptation.parameters[position].clone(),
            options: self.adaptation.options.clone(),
            training: self.rng.is_some(),
        }
    }

    /// A parameter of the merged model, f32 of its shape; `None` if it does not change.
    pub fn merged(&mut self, graph: &mut Graph, position: usize) -> Result<Option<Value>> {
        let adaptation = self.adaptation;
        if let Some(weight) = adaptation.weight_of(position).filter(|&weight| adaptation.is_linear_site(weight)) {
            return Ok(self.merged_layer(graph, [weight, position])?.1);
        }
        match adaptation.bias_of(position).filter(|_| adaptation.is_linear_site(position)) {
            Some(bias) => Ok(Some(self.merged_layer(graph, [position, bias])?.0)),
            None if matches!(adaptation.modes[position], TrainMode::Reparam(_)) => {
                self.effective(graph, position).map(Some)
            }
            None => Ok(None),
        }
    }

    /// The merged weight of a reparametrized layer, and its merged bias if that changes.
    fn merged_layer(&mut self, graph: &mut Graph, [weight, bias]: [usize; 2]) -> Result<(Value, Option<Value>)> {
        let (site, extras) = (self.site(weight), self.extras(graph, weight));
        let w = self.parameter(graph, weight)?;
        let own = match self.adaptation.modes[bias] {
            TrainMode::Reparam(_) => Some(self.effective(graph, bias)?),
            _ => None,
        };
        let b = own.map_or_else(|| self.parameter(graph, bias), Ok)?;
        let inputs = [in_f32(graph, w)?, in_f32(graph, b)?];
        let mut host = Recorder { graph, rng: None };
        let merged = self.adaptation.method.merge_with_bias(&site, &mut host, inputs, &extras);
        let merged = merged.map_err(|e| self.failed(weight, "merge", &e.to_string()))?;
        for (position, value) in [weight, bias].into_iter().zip(merged) {
            self.check(graph, value, &self.adaptation.parameters[position].shape, DType::F32)
                .map_err(|what| self.failed(position, "merge", &what))?;
        }
        Ok((merged[0], Some(merged[1]).filter(|&value| value != inputs[1]).or(own)))
    }

    /// A reparametrized parameter as the method merges it, f32 of its shape.
    fn effective(&mut self, graph: &mut Graph, position: usize) -> Result<Value> {
        let name = format!("merged.{}", self.adaptation.parameters[position].name);
        if let Some(&value) = self.values.get(&name) {
            return Ok(value);
        }
        let (w, extras) = (self.parameter(graph, position)?, self.extras(graph, position));
        let (site, w) = (self.site(position), in_f32(graph, w)?);
        let mut host = Recorder { graph, rng: None };
        let merged = self.adaptation.method.merge(&site, &mut host, w, &extras);
        let merged = merged.map_err(|e| self.failed(position, "merge", &e.to_string()))?;
        self.check(graph, merged, &self.adaptation.parameters[position].shape, DType::F32)
            .map_err(|what| self.failed(position, "merge", &what))?;
        self.values.insert(name, merged);
        Ok(merged)
    }

    /// The terms that the method adds to the loss, each f32 `[1]`.
    pub fn penalties(&mut self, graph: &mut Graph) -> Result<Vec<Value>> {
        let mut terms = Vec::new();
        for position in self.adaptation.reparametrized() {
            let (w, extras) = (self.parameter(graph, position)?, self.extras(graph, position));
            let site = self.site(position);
            let mut host = Recorder { graph, rng: self.rng };
            let term = self.adaptation.method.penalty(&site, &mut host, w, &extras);
            if let Some(term) = term.map_err(|e| self.failed(position, "penalty", &e.to_string()))? {
                self.check(graph, term, &[1], DType::F32).map_err(|what| self.failed(position, "penalty", &what))?;
                terms.push(term);
            }
        }
        Ok(terms)
    }

    /// What the method does to the extra tensors after the optimizer's update: the trained tensors that change, and
    /// their new values. `lr` is the step's learning rate, f32 `[1]`.
    pub fn updates(&mut self, graph: &mut Graph, lr: Value) -> Result<Vec<(Value, Value)>> {
        let mut seen = HashSet::new();
        let mut changes = Vec::new();
        for position in self.adaptation.reparametrized() {
            let (site, extras) = (self.site(position), self.extras(graph, position));
            let mut host = Recorder { graph, rng: None };
            let values = self.adaptation.method.update(&site, &mut host, &extras, lr);
            let values = values.map_err(|e| self.failed(position, "update", &e.to_string()))?;
            let TrainMode::Reparam(tensors) = &self.adaptation.modes[position] else { continue };
            if values.len() != tensors.len() {
                let what = format!("{} values for {} tensors", values.len(), tensors.len());
                return Err(self.failed(position, "update", &what));
            }
            for ((tensor, &extra), value) in tensors.iter().zip(&extras).zip(values) {
                // A shared tensor is the same value at every weight.
                if value == extra || !seen.insert(extra) {
                    continue;
                }
                if !tensor.trained {
                    return Err(self.failed(position, "update", &format!("`{}` is not trained", tensor.name)));
                }
                self.check(graph, value, &tensor.shape, DType::F32)
                    .map_err(|what| self.failed(position, "update", &format!("`{}`: {what}", tensor.name)))?;
                changes.push((extra, value));
            }
        }
        Ok(changes)
    }

    /// Checks the shape and type of a value from the method.
    fn check(&self, graph: &Graph, value: Value, shape: &[usize], dtype: DType) -> std::result::Result<(), String> {
        let ty = graph.ty(value).map_err(|e| e.to_string())?;
        if ty.shape != shape {
            return Err(format!("the output has shape {:?}, expected {shape:?}", ty.shape));
        }
        if ty.dtype != dtype {
            return Err(format!("the output has the type {}, expected {dtype}", ty.dtype));
        }
        Ok(())
    }

    fn failed(&self, position: usize, what: &str, message: &str) -> Error {
        let name = &self.adaptation.parameters[position].name;
        Error::Method(format!("method `{}`, {what} of {name}: {message}", self.adaptation.info.name))
    }
}

/// Builds the merged weight of every reparametrized parameter, only to learn before a run that it can be built.
///
/// Errors: those of the method; a weight of the wrong shape or type. Does nothing if the method cannot be merged.
pub fn check_merge(adaptation: &Adaptation) -> Result<()> {
    for position in adaptation.reparametrized().filter(|_| adaptation.method.mergeable()) {
        AdaptedLayers::new(adaptation, None).merged(&mut Graph::new(), position)?;
    }
    Ok(())
}

fn in_f32(graph: &mut Graph, x: Value) -> Result<Value> {
    match graph.ty(x)?.dtype {
        DType::F32 => Ok(x),
        _ => Ok(graph.one(Cast { to: DType::F32 }, &[x])?),
    }
}

impl Layers for AdaptedLayers<'_> {
    fn precision(&self) -> Precision {
        self.adaptation.precision
    }

    fn tensor(&mut self, graph: &mut Graph, name: &str) -> Result<Value> {
        let position = self.position(name)?;
        match self.adaptation.modes[position] {
            TrainMode::Reparam(_) => self.effective(graph, position),
            _ => self.parameter(graph, position),
        }
    }

    fn lookup(&mut self, graph: &mut Graph, name: &str, tokens: Value, op: Embed) -> Result<Value> {
        let position = self.position(name)?;
        let Some(decoding) = self.adaptation.decoding(position) else {
            let table = self.tensor(graph, name)?;
            return Ok(graph.one(op, &[table, tokens])?);
        };
        let table = self.stored(graph, position);
        let rows = graph.one(Dequantize { lookup: true, ..decoding }, &[table, tokens])?;
        let rows = in_f32(graph, rows)?;
        if op.scale == 1.0 { Ok(rows) } else { Ok(graph.one(Scale { factor: op.scale }, &[rows])?) }
    }

    fn factor(&mut self, graph: &mut Graph, name: &str) -> Result<Value> {
        let position = self.position(name)?;
        if !matches!(self.adaptation.modes[position], TrainMode::Reparam(_)) {
            return self.weight(graph, position);
        }
        let effective = self.effective(graph, position)?;
        match self.adaptation.precision.products {
            DType::F32 => Ok(effective),
            to => Ok(graph.one(Cast { to }, &[effective])?),
        }
    }

    fn linear(
        &mut self,
        graph: &mut Graph,
        module: &str,
        x: Value,
        bias: bool,
        residual: Option<Value>,
    ) -> Result<Value> {
        let position = self.position(&format!("{module}.weight"))?;
        let bias = if bias { Some(self.tensor(graph, &format!("{module}.bias"))?) } else { None };
        if !matches!(self.adaptation.modes[position], TrainMode::Reparam(_)) {
            return self.linear_with_remainder(graph, position, x, bias, residual);
        }
        let weight = self.weight(graph, position)?;
        let (site, mut extras) = (self.site(position), self.extras(graph, position));
        let inside = graph.ty(x)?.dtype;
        if inside != DType::F32 {
            for extra in &mut extras {
                *extra = graph.one(Cast { to: inside }, &[*extra])?;
            }
        }
        let mut host = Recorder { graph: &mut *graph, rng: self.rng };
        let method = &self.adaptation.method;
        let y = match bias {
            Some(bias) => method.forward_with_bias(&site, &mut host, x, [weight, bias], &extras),
            None => method.forward(&site, &mut host, x, weight, &extras),
        };
        let y = y.map_err(|e| self.failed(position, "forward", &e.to_string()))?;
        let expected = [graph.shape(x)?[0], self.adaptation.parameters[position].shape[0]];
        self.check(graph, y, &expected, inside).map_err(|what| self.failed(position, "forward", &what))?;
        match residual {
            // The sum has the type of the residual.
            Some(residual) => Ok(graph.one(Add {}, &[residual, y])?),
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::forward::{self, Inputs};
    use crate::{Decoder, HeadKind};
    use serde_json::json;
    use sparta_graph::{Node, Op, gradients};
    use std::path::Path;

    /// Two layers of a family, fully trained, with the gradients of a causal loss.
    fn trained_whole(family: &str, precision: Precision) -> Graph {
        let config = json!({
            "model_type": family, "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "query_pre_attn_scalar": 4,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 16,
            "hidden_activation": "gelu_pytorch_tanh",
        });
        let decoder = Decoder::parse(Path::new("config.json"), config.as_object().unwrap()).unwrap();
        let mut adaptation = Adaptation::none(decoder.parameters(HeadKind::CausalLm));
        adaptation.modes.iter_mut().for_each(|part| *part = TrainMode::Dense);
        adaptation.precision = precision;
        let mut graph = Graph::new();
        let mut layers = AdaptedLayers::new(&adaptation, None);
        let inputs = Inputs {
            tokens: graph.external("tokens", DType::U32, [6]),
            spans: graph.external("spans", DType::U32, [6, 2]),
            ropes: (0..decoder.ropes.len()).map(|i| graph.external(format!("rope.{i}"), DType::F32, [6, 4])).collect(),
            rows: None,
            dropout: None,
            cache: None,
        };
        let hidden = forward::hidden_states(&decoder, &mut graph, &mut layers, &inputs).unwrap();
        let logits = forward::vocabulary_logits(&decoder, &mut graph, &mut layers, hidden).unwrap();
        assert_eq!(graph.ty(logits).unwrap().dtype, DType::F32);
        let seed = graph.external("seed", DType::F32, [6, 11]);
        let trained = adaptation.trained();
        let requests: Vec<_> = trained.iter().map(|t| layers.grad_request(&mut graph, t)).collect();
        for grad in gradients(&mut graph, &[(logits, seed)], &requests).unwrap() {
            assert_eq!(graph.ty(grad).unwrap().dtype, DType::F32, "{family}: gradients of masters");
        }
        graph
    }

    fn dtypes(graph: &Graph, node: &Node) -> Vec<DType> {
        node.inputs.iter().map(|v| graph.ty(*v).unwrap().dtype).collect()
    }

    #[test]
    fn in_bf16_products_have_bf16_operands_and_the_residual_stream_is_f32() {
        for family in ["llama", "gemma", "gemma2", "qwen3"] {
            let graph = trained_whole(family, Precision::BF16);
            for node in graph.nodes() {
                let (types, label) = (dtypes(&graph, node), format!("{family}: {} {:?}", node.label, node.op));
                match &node.op {
                    Op::Linear(_) => assert_eq!(types[..2], [DType::BF16; 2], "{label}"),
                    Op::Attention(_) | Op::GatedAct(_) => assert_eq!(types[0], DType::BF16, "{label}"),
                    // The f32 values, not their rounded copies.
                    Op::RmsNorm(_) => assert_eq!(types[1], DType::F32, "{label}"),
                    Op::Embed(_) | Op::Add(_) if !node.label.is_empty() => {
                        let output = graph.ty(node.outputs[0]).unwrap().dtype;
                        assert!(output == DType::F32 || types[0] == DType::BF16, "{label}");
                    }
                    _ => {}
                }
            }
            let shadows =
                graph.values().iter().filter_map(|v| v.external.as_deref()).filter(|n| n.starts_with("shadow."));
            // Seven projections per layer, and the tied vocabulary head.
            assert_eq!(shadows.count(), 2 * 7 + 1, "{family}");
        }
    }

    #[test]
    fn in_f32_nothing_is_rounded() {
        let graph = trained_whole("gemma2", Precision::F32);
        assert!(graph.values().iter().all(|v| v.ty.dtype != DType::BF16));
        assert!(!graph.nodes().iter().any(|node| matches!(node.op, Op::Cast(_))));
    }
}
