//! Tests of what a method computes in a layer, without a model, on any [`Backend`]. `sparta-cli plugin check` runs them
//! on the CPU backend in f64; a plugin's own tests can do so too, with `sparta-backend-cpu` as a dev-dependency:
//!
//! ```ignore
//! use sparta_plugin::testing::layers;
//!
//! #[test]
//! fn merged_layers_give_the_same_outputs() {
//!     let mut backend = sparta_backend_cpu::Reference::new(None).unwrap();
//!     for layer in layers(&MyMethod, &Options::new()).unwrap() {
//!         layer.check_gradients(&mut backend).unwrap();
//!         layer.check_merge(&mut backend).unwrap();
//!     }
//! }
//! ```

mod own;

use crate::Error;
use crate::backend::Backend;
use crate::graph::Recorder;
use crate::method::{ExtraTensor, GraphBuilder, Init, Method, Options, Parameter, Role, Selection, Site};
use sparta_graph::ops::{Add, Broadcast, Fill, Layout, Linear, Mul, OwnKernel, RowSum, Scale, Store};
use sparta_graph::{DType, GradRequest, Graph, Op, Value, gradients, philox4x32_10};
use std::f64::consts::TAU;

pub use own::{OwnCase, own_operations};

/// An f32 tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements, row by row.
    pub values: Vec<f32>,
}

impl Tensor {
    /// A tensor whose values are computed from their positions.
    pub fn new(shape: &[usize], value: impl Fn(usize) -> f64) -> Tensor {
        Tensor { shape: shape.to_vec(), values: (0..shape.iter().product()).map(|i| value(i) as f32).collect() }
    }

    /// A tensor of normal numbers, drawn with the seed.
    pub fn normal(shape: &[usize], seed: u32) -> Tensor {
        Tensor::new(shape, |i| {
            let words = philox4x32_10([i as u32, 0, 0, 0], [seed, 1]);
            let [u, v] = [words[0], words[1]].map(|word| (f64::from(word) + 0.5) / 2f64.powi(32));
            (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
        })
    }

    /// The largest magnitude; NaN counts as infinite.
    pub fn largest(&self) -> f64 {
        let magnitude = |x: &f32| if x.is_nan() { f64::INFINITY } else { f64::from(x.abs()) };
        self.values.iter().map(magnitude).fold(0.0, f64::max)
    }

    /// How much two tensors of one shape differ, relative to the largest magnitude of `self`; infinite if one of them
    /// is not finite.
    pub fn difference(&self, other: &Tensor) -> f64 {
        let (a, b) = (self.values.iter(), other.values.iter());
        let both = Tensor { shape: self.shape.clone(), values: a.zip(b).map(|(a, b)| a - b).collect() };
        both.largest() / self.largest().max(f64::MIN_POSITIVE)
    }
}

/// Builds a graph on the inputs and computes its outputs.
///
/// Errors: those of `build`; what the backend cannot do.
pub fn evaluate(
    backend: &mut dyn Backend,
    inputs: &[Tensor],
    build: impl FnOnce(&mut dyn GraphBuilder, &[Value]) -> Result<Vec<Value>, Error>,
) -> Result<Vec<Tensor>, Error> {
    compute(backend, inputs, false, |recorder, values| build(recorder, values))
}

fn compute(
    backend: &mut dyn Backend,
    inputs: &[Tensor],
    training: bool,
    build: impl FnOnce(&mut Recorder, &[Value]) -> Result<Vec<Value>, Error>,
) -> Result<Vec<Tensor>, Error> {
    let mut graph = Graph::new();
    let (values, rng) = given(&mut graph, inputs);
    let outputs = build(&mut Recorder { graph: &mut graph, rng: training.then_some(rng) }, &values)?;
    run(backend, graph, inputs, &outputs, None)
}

/// Inputs of these shapes in a graph, and its random input.
fn given(graph: &mut Graph, inputs: &[Tensor]) -> (Vec<Value>, Value) {
    let external = |(i, input): (usize, &Tensor)| graph.external(format!("in{i}"), DType::F32, &*input.shape);
    (inputs.iter().enumerate().map(external).collect(), graph.external("rng", DType::U32, [4]))
}

/// Computes values of a graph with [`given`] inputs. `kernels` are those that plugins' own operations may use, instead
/// of all that the device supports.
fn run(
    backend: &mut dyn Backend,
    mut graph: Graph,
    inputs: &[Tensor],
    outputs: &[Value],
    kernels: Option<&[OwnKernel]>,
) -> Result<Vec<Tensor>, Error> {
    let fail = |e: &dyn std::fmt::Display| Error(e.to_string());
    let mut shapes = Vec::new();
    for (i, &output) in outputs.iter().enumerate() {
        let shape = graph.shape(output).map_err(|e| fail(&e))?.to_vec();
        let out = graph.external(format!("out{i}"), DType::F32, &*shape);
        graph.apply(Store {}.into(), &[out, output]).map_err(|e| fail(&e))?;
        shapes.push(shape);
    }
    let mut device = backend.info();
    device.own_kernels = kernels.map_or(device.own_kernels, <[OwnKernel]>::to_vec);
    let plan = device.plan(&graph);
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut buffers = Vec::new();
    for external in &plan.externals {
        let buffer = backend.alloc(external.ty.dtype, external.ty.numel(), &external.name).map_err(|e| fail(&e))?;
        let data = match external.name.strip_prefix("in").and_then(|i| inputs.get(i.parse::<usize>().ok()?)) {
            Some(input) => bytes(&input.values),
            None if external.name == "rng" => [1u32, 2, 3, 4].iter().flat_map(|word| word.to_le_bytes()).collect(),
            None => vec![0; external.ty.bytes()],
        };
        backend.write(buffer, 0, &data).map_err(|e| fail(&e))?;
        buffers.push(buffer);
    }
    let arena = plan.arena_buffers().iter().map(|bytes| backend.alloc(DType::F32, bytes / 4, "arena"));
    let arena = arena.collect::<Result<Vec<_>, _>>().map_err(|e| fail(&e))?;
    let id = backend.prepare(&plan, &arena, &buffers).map_err(|e| fail(&e))?;
    backend.run(id).map_err(|e| fail(&e))?;
    let mut results = Vec::new();
    for (i, shape) in shapes.into_iter().enumerate() {
        let name = format!("out{i}");
        let at = plan.externals.iter().position(|external| external.name == name);
        let mut data = vec![0; 4 * shape.iter().product::<usize>()];
        if let Some(at) = at {
            backend.read(buffers[at], 0, &mut data).map_err(|e| fail(&e))?;
        }
        let values = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        results.push(Tensor { shape, values });
    }
    backend.release(id);
    arena.into_iter().chain(buffers).for_each(|buffer| backend.free(buffer));
    Ok(results)
}

/// The tensors of a small two-layer classifier whose dimensions all differ: hidden 8, queries 12, keys and values
/// 4, MLP 16.
pub fn model() -> Vec<Parameter> {
    let parameter = |name: String, shape: &[usize], role, layer| {
        let shape = shape.to_vec();
        Parameter { name, shape, dtype: DType::F32, role, layer }
    };
    let mut all = vec![parameter("model.embed_tokens.weight".into(), &[99, 8], Role::Embedding, None)];
    for layer in 0..2 {
        for (name, shape, role) in [
            ("input_layernorm.weight", &[8][..], Role::Norm),
            ("self_attn.q_proj.weight", &[12, 8], Role::QProj),
            ("self_attn.k_proj.weight", &[4, 8], Role::KProj),
            ("self_attn.v_proj.weight", &[4, 8], Role::VProj),
            ("self_attn.o_proj.weight", &[8, 12], Role::OProj),
            ("self_attn.q_proj.bias", &[12], Role::Bias),
            ("self_attn.k_proj.bias", &[4], Role::Bias),
            ("self_attn.v_proj.bias", &[4], Role::Bias),
            ("post_attention_layernorm.weight", &[8], Role::Norm),
            ("mlp.gate_proj.weight", &[16, 8], Role::GateProj),
            ("mlp.up_proj.weight", &[16, 8], Role::UpProj),
            ("mlp.down_proj.weight", &[8, 16], Role::DownProj),
        ] {
            all.push(parameter(format!("model.layers.{layer}.{name}"), shape, role, Some(layer)));
        }
    }
    all.push(parameter("model.norm.weight".into(), &[8], Role::Norm, None));
    all.push(parameter("score.weight".into(), &[2, 8], Role::Head, None));
    all
}

/// A parameter of [`model`] that a method reparametrizes; most tests need a linear layer.
pub struct Layer<'a> {
    method: &'a dyn Method,
    parameter: Parameter,
    options: Options,
    tensors: Vec<ExtraTensor>,
}

/// The layers of [`model`] that a method reparametrizes; none for a method that only selects elements.
///
/// Errors: those of `select`; not one selection per parameter.
pub fn layers<'a>(method: &'a dyn Method, options: &Options) -> Result<Vec<Layer<'a>>, Error> {
    let all = sites(method, options)?;
    Ok(all.into_iter().filter(|layer| is_linear(&layer.parameter)).collect())
}

/// As [`layers`], of all parameters: norms, biases and the embedding, too.
///
/// Errors: those of [`layers`].
pub fn sites<'a>(method: &'a dyn Method, options: &Options) -> Result<Vec<Layer<'a>>, Error> {
    let parameters = model();
    let selections = method.select(&parameters, options)?;
    if selections.len() != parameters.len() {
        return Err(Error(format!("`select` answered for {} of {} tensors", selections.len(), parameters.len())));
    }
    let layer = |(parameter, selection)| match selection {
        Selection::Reparam { tensors } => Some(Layer { method, parameter, options: options.clone(), tensors }),
        _ => None,
    };
    Ok(parameters.into_iter().zip(selections).filter_map(layer).collect())
}

fn is_linear(parameter: &Parameter) -> bool {
    parameter.role.is_projection() || parameter.role == Role::Head
}

/// The rows of a layer's input.
const ROWS: usize = 5;

/// Half the distance between the two points of a central difference: a power of two, so that f32 holds it and its
/// inverse.
const STEP: f32 = 1.0 / 8192.0;

/// What rounding and differences may add up to: results are read as f32, and a central difference is off by `STEP`^2 /
/// 6 times the third derivative.
const TOLERANCE: f64 = 1e-5;

/// Whether the gradients could be compared with differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// They agree.
    Agree,
    /// The method stops a gradient with [`Detach`](sparta_graph::ops::Detach), or passes one straight through, so that
    /// differences must disagree.
    Detached,
}

impl Layer<'_> {
    /// The name of its weight.
    pub fn name(&self) -> &str {
        &self.parameter.name
    }

    fn site(&self, training: bool) -> Site {
        Site { parameter: self.parameter.clone(), options: self.options.clone(), training }
    }

    /// x `[5, in]`, the parameter (w `[out, in]` of a layer) and the added tensors: at their initial values or, if
    /// trained, moved away from them.
    fn inputs(&self, moved: bool) -> Vec<Tensor> {
        let input = self.parameter.shape.iter().skip(1).product();
        let w = Tensor::normal(&self.parameter.shape, 2);
        let norm =
            |row: usize| w.values[row * input..][..input].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let mut inputs = vec![Tensor::normal(&[ROWS, input], 1), w.clone()];
        for (tensor, seed) in self.tensors.iter().zip(3..) {
            let noise = Tensor::normal(&tensor.shape, seed);
            let begin = |i: usize| match tensor.init {
                Init::Zeros => 0.0,
                // Any numbers of this size will do.
                Init::Uniform { bound: size } | Init::Normal { std: size } => size * f64::from(noise.values[i]),
                Init::Constant { value } => value,
                Init::RowNorms => norm(i),
            };
            let change = Tensor::normal(&tensor.shape, seed + 100);
            let change = |i: usize| if moved && tensor.trained { 0.1 * f64::from(change.values[i]) } else { 0.0 };
            inputs.push(Tensor::new(&tensor.shape, |i| begin(i) + change(i)));
        }
        inputs
    }

    /// The names of the operations that `forward` adds.
    ///
    /// Errors: those of `forward`.
    pub fn operations(&self, training: bool) -> Result<Vec<&'static str>, Error> {
        let mut graph = Graph::new();
        let (values, rng) = given(&mut graph, &self.inputs(false));
        self.forward(&mut Recorder { graph: &mut graph, rng: training.then_some(rng) }, &values)?;
        Ok(graph.nodes().iter().map(|node| node.op.name()).collect())
    }

    fn forward(&self, graph: &mut Recorder, values: &[Value]) -> Result<Value, Error> {
        let site = self.site(graph.rng.is_some());
        let y = self.method.forward(&site, graph, values[0], values[1], &values[2..])?;
        let (got, expected) = (graph.shape(y)?, [ROWS, self.parameter.shape[0]]);
        match got == expected {
            true => Ok(y),
            false => Err(self.wrong(format!("`forward` gave the shape {got:?}, expected {expected:?}"))),
        }
    }

    fn merge(&self, graph: &mut Recorder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let merged = self.method.merge(&self.site(graph.rng.is_some()), graph, w, extra)?;
        let (got, expected) = (graph.shape(merged)?, &self.parameter.shape);
        match got == *expected {
            true => Ok(merged),
            false => Err(self.wrong(format!("`merge` gave the shape {got:?}, expected {expected:?}"))),
        }
    }

    /// What the model uses: the output of a linear layer, or the merged parameter.
    fn output(&self, graph: &mut Recorder, values: &[Value]) -> Result<Value, Error> {
        match is_linear(&self.parameter) {
            true => self.forward(graph, values),
            false => self.merge(graph, values[1], &values[2..]),
        }
    }

    fn wrong(&self, what: String) -> Error {
        Error(format!("{}: {what}", self.name()))
    }

    /// How much the method changes what the layer computes, or any other parameter, before any training, relative to
    /// the largest number.
    ///
    /// Errors: those of `forward`, or of `merge`, and of the backend.
    pub fn change_at_start(&self, backend: &mut dyn Backend) -> Result<f64, Error> {
        let outputs = compute(backend, &self.inputs(false), false, |graph, values| {
            let before = match is_linear(&self.parameter) {
                true => plain(graph, values[0], values[1])?,
                false => values[1],
            };
            Ok(vec![before, self.output(graph, values)?])
        })?;
        Ok(outputs[0].difference(&outputs[1]))
    }

    /// Checks that a plain layer with the merged weight computes the same result, whatever the added tensors are. Meant
    /// for a backend in f64.
    ///
    /// Errors: the layers differ; those of `forward`, `merge` and the backend.
    pub fn check_merge(&self, backend: &mut dyn Backend) -> Result<(), Error> {
        let outputs = compute(backend, &self.inputs(true), false, |graph, values| {
            let y = self.forward(graph, values)?;
            let merged = self.merge(graph, values[1], &values[2..])?;
            Ok(vec![y, plain(graph, values[0], merged)?])
        })?;
        self.merged_difference(&outputs, "`forward`")
    }

    /// Whether a plain layer with the merged weight and bias computes what `forward_with_bias` does. Meant for a
    /// backend in f64.
    ///
    /// Errors: it does not; those of the method and the backend.
    pub fn check_bias(&self, backend: &mut dyn Backend) -> Result<(), Error> {
        let mut inputs = self.inputs(true);
        inputs.insert(2, Tensor::normal(&self.parameter.shape[..1], 50));
        let outputs = compute(backend, &inputs, false, |graph, values| {
            let (x, layer, extra) = (values[0], [values[1], values[2]], &values[3..]);
            let site = self.site(false);
            let y = self.method.forward_with_bias(&site, graph, x, layer, extra)?;
            let [w, bias] = self.method.merge_with_bias(&site, graph, layer, extra)?;
            for (what, value, expected) in
                [("weight", w, &self.parameter.shape[..]), ("bias", bias, &self.parameter.shape[..1])]
            {
                let got = graph.shape(value)?;
                if got != expected {
                    let message =
                        format!("`merge_with_bias` gave a {what} of the shape {got:?}, expected {expected:?}");
                    return Err(self.wrong(message));
                }
            }
            let merged = plain(graph, x, w)?;
            Ok(vec![y, one(graph, Add {}, &[merged, bias])?])
        })?;
        self.merged_difference(&outputs, "`forward_with_bias`")
    }

    fn merged_difference(&self, outputs: &[Tensor], of: &str) -> Result<(), Error> {
        let difference = outputs[0].difference(&outputs[1]);
        // Written so that NaN fails.
        if difference <= TOLERANCE {
            return Ok(());
        }
        Err(self.wrong(format!("the merged layer differs from {of} by {difference:.1e} of the largest output")))
    }

    /// The method's term of the loss for this parameter, if it has one.
    ///
    /// Errors: a term whose shape is not `[1]`, or that is not finite; those of the method and the backend.
    pub fn penalty(&self, backend: &mut dyn Backend) -> Result<Option<f32>, Error> {
        let outputs = compute(backend, &self.inputs(true), true, |graph, values| {
            let term = self.method.penalty(&self.site(true), graph, values[1], &values[2..])?;
            match term.map(|term| graph.shape(term)).transpose()? {
                Some(shape) if shape != [1] => {
                    Err(self.wrong(format!("`penalty` gave the shape {shape:?}, expected [1]")))
                }
                _ => Ok(term.into_iter().collect()),
            }
        })?;
        let term = outputs.first().and_then(|term| term.values.first()).copied();
        match term {
            Some(term) if !term.is_finite() => Err(self.wrong(format!("`penalty` is {term}"))),
            term => Ok(term),
        }
    }

    /// The names of the added tensors that `update` changes, at a learning rate of 0.01.
    ///
    /// Errors: values that are not finite, of the wrong shape, or of a tensor that is not trained; those of the method
    /// and the backend.
    pub fn updated(&self, backend: &mut dyn Backend) -> Result<Vec<&str>, Error> {
        let mut changed = Vec::new();
        let outputs = compute(backend, &self.inputs(true), true, |graph, values| {
            let lr = one(graph, Fill { value: 0.01, shape: vec![1] }, &[])?;
            let extra = &values[2..];
            let updated = self.method.update(&self.site(true), graph, extra, lr)?;
            if updated.len() != extra.len() {
                let (got, expected) = (updated.len(), extra.len());
                return Err(self.wrong(format!("`update` gave {got} values for {expected} tensors")));
            }
            let pairs = updated.into_iter().zip(extra).zip(&self.tensors);
            changed = pairs.filter(|((value, extra), _)| value != *extra).map(|((value, _), t)| (value, t)).collect();
            for (value, tensor) in &changed {
                let (got, expected) = (graph.shape(*value)?, &tensor.shape);
                if got != *expected {
                    let name = &tensor.name;
                    return Err(self.wrong(format!("`update` gave `{name}` the shape {got:?}, expected {expected:?}")));
                }
                if !tensor.trained {
                    return Err(self.wrong(format!("`update` changes `{}`, which is not trained", tensor.name)));
                }
            }
            Ok(changed.iter().map(|(value, _)| *value).collect())
        })?;
        for (output, (_, tensor)) in outputs.iter().zip(&changed) {
            if !output.largest().is_finite() {
                return Err(self.wrong(format!("`update` gives `{}` numbers that are not finite", tensor.name)));
            }
        }
        Ok(changed.into_iter().map(|(_, tensor): (Value, &ExtraTensor)| tensor.name.as_str()).collect())
    }

    /// Compares the gradients of the trained tensors, and of a layer's x, with central differences. Meant for a backend
    /// in f64.
    ///
    /// Errors: they disagree; a trained tensor that no gradient reaches; those of `forward`, or of `merge`, and of the
    /// backend.
    pub fn check_gradients(&self, backend: &mut dyn Backend) -> Result<Gradients, Error> {
        let inputs = self.inputs(true);
        let trained = self.tensors.iter().enumerate().filter(|(_, tensor)| tensor.trained).map(|(i, _)| i + 2);
        let linear = is_linear(&self.parameter);
        let moved: Vec<usize> = linear.then_some(0).into_iter().chain(trained).collect();
        let directions = moved.iter().zip(200..).map(|(&at, seed)| Tensor::normal(&inputs[at].shape, seed));
        let directions: Vec<Tensor> = directions.collect();
        let upstream = match linear {
            true => Tensor::normal(&[ROWS, self.parameter.shape[0]], 300),
            false => Tensor::normal(&self.parameter.shape, 300),
        };
        let all = [&inputs[..], &directions, &[upstream]].concat();
        let mut detached = false;
        let outputs = compute(backend, &all, true, |graph, values| {
            let (own, given) = values.split_at(inputs.len());
            let (directions, upstream) = given.split_at(moved.len());
            let mut differences = Vec::new();
            for (&at, &direction) in moved.iter().zip(directions) {
                differences.push(self.difference(graph, own, (at, direction), upstream[0])?);
            }
            let y = self.output(graph, own)?;
            detached = graph.graph.nodes().iter().any(|node| match &node.op {
                Op::Detach(_) => true,
                Op::Own(own) => own.0.gradient.as_ref().is_some_and(|rule| rule.straight_through),
                _ => false,
            });
            let requests: Vec<_> = moved.iter().map(|&at| (own[at], GradRequest::Dense)).collect();
            let grads = gradients(graph.graph, &[(y, upstream[0])], &requests);
            let grads = grads.map_err(|e| self.wrong(self.with_names(&e.to_string())))?;
            Ok([grads, differences].concat())
        })?;
        if detached {
            return Ok(Gradients::Detached);
        }
        let (grads, differences) = outputs.split_at(moved.len());
        for (i, &at) in moved.iter().enumerate() {
            let along = |x: &f32, v: &f32| f64::from(*x) * f64::from(*v);
            let products = || grads[i].values.iter().zip(&directions[i].values).map(|(g, v)| along(g, v));
            let (analytic, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
            let rows = differences[i].values.iter().map(|&row| f64::from(row));
            let (numeric, rows) = (rows.clone().sum::<f64>(), rows.map(f64::abs).sum::<f64>());
            // Written so that NaN fails.
            let agree = (analytic - numeric).abs() <= TOLERANCE * (size + rows);
            if !agree {
                let name = if at == 0 { "x" } else { &self.tensors[at - 2].name };
                return Err(self.wrong(format!(
                    "the gradient of {name} along a direction is {analytic:e}, by differences {numeric:e}"
                )));
            }
        }
        Ok(Gradients::Agree)
    }

    /// The derivative of the output, weighted by `upstream` and summed over each row `[T, 1]`, along a direction of an
    /// input; a vector is one row.
    fn difference(
        &self,
        graph: &mut Recorder,
        values: &[Value],
        (at, direction): (usize, Value),
        upstream: Value,
    ) -> Result<Value, Error> {
        let mut at_step = |step: f32| {
            let mut values = values.to_vec();
            let change = one(graph, Scale { factor: step }, &[direction])?;
            values[at] = one(graph, Add {}, &[values[at], change])?;
            let y = self.output(graph, &values)?;
            one(graph, Scale { factor: 0.5 / step }, &[y])
        };
        // Both are divided by the distance, the second with its sign.
        let (after, before) = (at_step(STEP)?, at_step(-STEP)?);
        let slope = one(graph, Add {}, &[after, before])?;
        let mut weighted = one(graph, Mul {}, &[slope, upstream])?;
        if let [n] = graph.shape(weighted)?[..] {
            weighted = one(graph, Broadcast { shape: [1, n] }, &[weighted])?;
        }
        one(graph, RowSum {}, &[weighted])
    }

    /// The message with the names of the added tensors in place of input numbers.
    fn with_names(&self, message: &str) -> String {
        let named = |message: String, (i, tensor): (usize, &ExtraTensor)| {
            message.replace(&format!("in{}", i + 2), &tensor.name)
        };
        self.tensors.iter().enumerate().rev().fold(message.to_owned(), named)
    }
}

fn plain(graph: &mut Recorder, x: Value, w: Value) -> Result<Value, Error> {
    one(graph, Linear::plain(Layout::Nt), &[x, w])
}

fn one(graph: &mut Recorder, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, Error> {
    let graph: &mut dyn GraphBuilder = graph;
    graph.one(op, inputs)
}
