//! The model's tensors in a graph, with the method's changes in place.

use super::adaptation::{Adaptation, Form, Part, Trained, extra_name};
use crate::decoder::forward::{Layers, plain_linear};
use crate::{Error, Result};
use sparta_graph::ops::{Add, Cast, Scatter};
use sparta_graph::{DType, GradRequest, Graph, Op, Value};
use sparta_plugin::method::{GraphBuilder, Site};
use std::collections::HashMap;

/// Names of tensors on the device that belong to a sparse part.
pub fn index_name(parameter: &str) -> String {
    format!("index.{parameter}")
}

pub fn row_ptr_name(parameter: &str) -> String {
    format!("row_ptr.{parameter}")
}

pub fn base_name(parameter: &str) -> String {
    format!("base.{parameter}")
}

/// [`Layers`] of an adapted model.
pub struct AdaptedLayers<'a> {
    adaptation: &'a Adaptation,
    positions: HashMap<&'a str, usize>,
    values: HashMap<String, Value>,
    /// The rng input while training; `None` while evaluating: no dropout then.
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

    fn parameter(&mut self, graph: &mut Graph, position: usize) -> Value {
        let parameter = &self.adaptation.parameters[position];
        let dtype = self.adaptation.device_dtype(position);
        self.external(graph, parameter.name.clone(), dtype, &parameter.shape)
    }

    /// The trained tensor itself.
    pub fn trained(&mut self, graph: &mut Graph, trained: &Trained) -> Value {
        self.external(graph, trained.name.clone(), DType::F32, &trained.shape)
    }

    /// What to differentiate by for a trained tensor: the tensor, or chosen elements of the weight they stand for.
    pub fn grad_request(&mut self, graph: &mut Graph, trained: &Trained) -> (Value, GradRequest) {
        if trained.form != Form::Sparse {
            return (self.trained(graph, trained), GradRequest::Dense);
        }
        let parameter = &self.adaptation.parameters[trained.parameter];
        let weight = self.parameter(graph, trained.parameter);
        let index = self.external(graph, index_name(&parameter.name), DType::U32, &trained.shape);
        let row_ptr = match parameter.shape[..] {
            [rows, _] => Some(self.external(graph, row_ptr_name(&parameter.name), DType::U32, &[rows + 1])),
            _ => None,
        };
        (weight, GradRequest::Sampled { index, row_ptr })
    }

    /// Appends the write of `base + delta` into the weight of a sparse part.
    pub fn scatter(&mut self, graph: &mut Graph, trained: &Trained) -> Result<()> {
        let parameter = &self.adaptation.parameters[trained.parameter];
        let weight = self.parameter(graph, trained.parameter);
        let index = self.external(graph, index_name(&parameter.name), DType::U32, &trained.shape);
        let base = self.external(graph, base_name(&parameter.name), DType::F32, &trained.shape);
        let delta = self.trained(graph, trained);
        graph.apply(Scatter {}.into(), &[weight, index, base, delta])?;
        Ok(())
    }

    fn extras(&mut self, graph: &mut Graph, position: usize) -> Vec<Value> {
        let adaptation = self.adaptation;
        let Part::Reparam(tensors) = &adaptation.parts[position] else { return Vec::new() };
        let parameter = &adaptation.parameters[position].name;
        tensors.iter().map(|t| self.external(graph, extra_name(parameter, &t.name), DType::F32, &t.shape)).collect()
    }

    fn site(&self, position: usize) -> Site {
        Site {
            parameter: self.adaptation.parameters[position].clone(),
            options: self.adaptation.options.clone(),
            training: self.rng.is_some(),
        }
    }

    /// The merged weight of a reparametrised parameter, f32 `[out, in]`.
    pub fn merged(&mut self, graph: &mut Graph, position: usize) -> Result<Value> {
        let (mut w, extras) = (self.parameter(graph, position), self.extras(graph, position));
        let dtype = self.adaptation.device_dtype(position);
        if dtype != DType::F32 {
            w = graph.one(Cast { to: DType::F32 }, &[w])?;
        }
        let site = self.site(position);
        let mut host = HostGraph { graph, rng: None };
        let merged = self.adaptation.method.merge(&site, &mut host, w, &extras);
        merged.map_err(|e| self.failed(position, "merge", &e.to_string()))
    }

    fn failed(&self, position: usize, what: &str, message: &str) -> Error {
        let name = &self.adaptation.parameters[position].name;
        Error::Method(format!("method `{}`, {what} of {name}: {message}", self.adaptation.info.name))
    }
}

impl Layers for AdaptedLayers<'_> {
    fn tensor(&mut self, graph: &mut Graph, name: &str) -> Result<Value> {
        let position = self.position(name)?;
        Ok(self.parameter(graph, position))
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
        let weight = self.parameter(graph, position);
        let bias = if bias { Some(self.tensor(graph, &format!("{module}.bias"))?) } else { None };
        if !matches!(self.adaptation.parts[position], Part::Reparam(_)) {
            return plain_linear(graph, x, weight, bias, residual);
        }
        let (site, extras) = (self.site(position), self.extras(graph, position));
        let mut host = HostGraph { graph: &mut *graph, rng: self.rng };
        let y = self.adaptation.method.forward(&site, &mut host, x, weight, &extras);
        let mut y = y.map_err(|e| self.failed(position, "forward", &e.to_string()))?;
        let expected = [graph.shape(x)?[0], self.adaptation.parameters[position].shape[0]];
        if graph.shape(y)? != expected {
            let got = format!("the output has shape {:?}, expected {expected:?}", graph.shape(y)?);
            return Err(self.failed(position, "forward", &got));
        }
        for term in [bias, residual].into_iter().flatten() {
            y = graph.one(Add {}, &[y, term])?;
        }
        Ok(y)
    }
}

/// The graph as a method plugin sees it.
struct HostGraph<'a> {
    graph: &'a mut Graph,
    rng: Option<Value>,
}

impl GraphBuilder for HostGraph<'_> {
    fn apply(&mut self, op: Op, inputs: &[Value]) -> std::result::Result<Vec<Value>, sparta_plugin::Error> {
        if !op.writes().is_empty() {
            return Err(format!("a method cannot use `{}`: it changes tensors in place", op.name()).into());
        }
        self.graph.apply(op, inputs).map_err(|e| e.to_string().into())
    }

    fn shape(&self, value: Value) -> std::result::Result<Vec<usize>, sparta_plugin::Error> {
        self.graph.shape(value).map(<[usize]>::to_vec).map_err(|e| e.to_string().into())
    }

    fn rng(&mut self) -> std::result::Result<Value, sparta_plugin::Error> {
        self.rng.ok_or_else(|| "there is no random input while evaluating: leave dropout out".into())
    }
}
