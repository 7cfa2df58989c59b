//! A case: one small graph with its inputs, what to observe of it, and what to differentiate.

use super::narrow;
use crate::device::Tensors;
use crate::{Precision, Random, Tensor};
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{Cast, step};
use sparta_graph::{DType, GradRequest, Graph, GraphError, Op, Value, gradients};
use std::collections::HashMap;

pub struct Case {
    pub name: String,
    build: Box<dyn Fn(&mut Build)>,
}

impl Case {
    pub fn new(name: impl Into<String>, build: impl Fn(&mut Build) + 'static) -> Self {
        Case { name: name.into(), build: Box::new(build) }
    }

    /// The case as a graph. With `exact`, weights are f32 of the same values, so that they can be varied slightly;
    /// with `backward`, the gradients of what the case differentiates are part of it.
    pub fn program(&self, precision: Precision, exact: bool, backward: bool) -> Program {
        let mut build = Build {
            graph: Graph::new(),
            precision,
            random: Random::named(&self.name),
            exact,
            data: Tensors::new(),
            names: HashMap::new(),
            observed: vec![],
            seeds: vec![],
            wrt: vec![],
            expected: vec![],
            ignored: vec![],
            magnitude: 1.0,
            refusable: false,
            narrowed: false,
            variant: Random::named(&self.name).below(3),
        };
        (self.build)(&mut build);
        build.finish(backward).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// A tensor, or chosen elements of one, with respect to which a case differentiates.
pub struct Wrt {
    value: Value,
    pub name: String,
    request: GradRequest,
    pub chosen: Option<Vec<usize>>,
}

pub struct Program {
    pub graph: Graph,
    /// The content of every external tensor before the run.
    pub data: Tensors,
    /// (output, upstream gradient) by name.
    pub seeds: Vec<(String, String)>,
    pub wrt: Vec<Wrt>,
    /// What the case computed by its own formula.
    pub expected: Vec<(String, Vec<f64>)>,
    pub ignored: Vec<String>,
    /// The size of the terms that are added up, 1 for normal data.
    pub magnitude: f64,
    /// Whether the case is so large that a device may refuse it.
    pub refusable: bool,
    /// Whether some op works on bf16 that would work on f32 in the other precision.
    pub narrowed: bool,
}

/// What a case's function works on. Mistakes in a case panic with its name.
pub struct Build {
    graph: Graph,
    pub precision: Precision,
    pub random: Random,
    exact: bool,
    data: Tensors,
    names: HashMap<Value, String>,
    observed: Vec<(Value, String)>,
    seeds: Vec<(Value, Value, String, String)>,
    wrt: Vec<Wrt>,
    expected: Vec<(String, Vec<f64>)>,
    ignored: Vec<String>,
    pub magnitude: f64,
    pub refusable: bool,
    narrowed: bool,
    /// How ops that name their output are narrowed.
    variant: usize,
}

impl Build {
    // ---- inputs

    pub fn data(&mut self, dtype: DType, shape: &[usize], values: Vec<f64>) -> Value {
        let name = format!("x{}", self.names.len());
        let mut tensor = Tensor::new(dtype, shape, values);
        if self.exact && dtype.is_float() {
            tensor.ty.dtype = DType::F32;
        }
        self.named(name, tensor)
    }

    /// [`Build::data`] that keeps its type, for inputs that nothing is differentiated with respect to.
    pub fn stored(&mut self, dtype: DType, shape: &[usize], values: Vec<f64>) -> Value {
        let name = format!("x{}", self.names.len());
        self.named(name, Tensor::new(dtype, shape, values))
    }

    fn named(&mut self, name: String, tensor: Tensor) -> Value {
        let value = self.graph.external(&name, tensor.ty.dtype, tensor.ty.shape.clone());
        self.names.insert(value, name.clone());
        self.data.insert(name, tensor);
        value
    }

    pub fn f32s(&mut self, shape: &[usize], values: Vec<f64>) -> Value {
        self.data(DType::F32, shape, values)
    }

    pub fn normal(&mut self, shape: &[usize]) -> Value {
        self.weight(DType::F32, shape)
    }

    pub fn weight(&mut self, dtype: DType, shape: &[usize]) -> Value {
        let values = self.random.normals(shape.iter().product());
        self.data(dtype, shape, values)
    }

    pub fn zeros(&mut self, shape: &[usize]) -> Value {
        self.f32s(shape, vec![0.0; shape.iter().product()])
    }

    pub fn u32s(&mut self, shape: &[usize], values: impl IntoIterator<Item = usize>) -> Value {
        self.data(DType::U32, shape, values.into_iter().map(|i| i as f64).collect())
    }

    /// `[start, end)` for each row of segments of these lengths.
    pub fn spans(&mut self, lengths: &[usize]) -> Value {
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        let rows: Vec<usize> = ends.zip(lengths).flat_map(|(end, &n)| [end - n, end].repeat(n)).collect();
        self.u32s(&[rows.len() / 2, 2], rows)
    }

    pub fn rng_key(&mut self) -> Value {
        let key: Vec<usize> = (0..4).map(|_| self.random.bits() as u32 as usize).collect();
        self.u32s(&[4], key)
    }

    /// The host's scalars of a step; those not given are 0.
    pub fn step(&mut self, scalars: &[(usize, f64)]) -> Value {
        let mut values = vec![0.0; step::LEN];
        scalars.iter().for_each(|&(i, x)| values[i] = x);
        self.f32s(&[step::LEN], values)
    }

    /// The content of an input.
    pub fn of(&self, value: Value) -> Vec<f64> {
        self.data[&self.names[&value]].values.clone()
    }

    // ---- the graph

    /// Adds an op; in bf16, one that works on rounded inputs.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Vec<Value> {
        if self.precision == Precision::F32 {
            return self.add(op, inputs);
        }
        let types: Vec<TensorType> = inputs.iter().map(|&v| self.ty(v)).collect();
        let (op, cast) = narrow::narrowed(op.into(), &types, self.variant);
        self.narrowed |= !cast.is_empty() || matches!(op, Op::Linear(_) | Op::RmsNorm(_));
        let mut inputs = inputs.to_vec();
        // Ops that only take f32 get the results of narrowed ops cast to f32.
        for i in (0..inputs.len()).filter(|_| narrow::is_for_f32(&op)) {
            if types[i].dtype == DType::BF16 && !self.names.contains_key(&inputs[i]) {
                inputs[i] = self.add(Cast { to: DType::F32 }, &[inputs[i]])[0];
            }
        }
        for i in cast {
            inputs[i] = self.add(Cast { to: DType::BF16 }, &[inputs[i]])[0];
        }
        self.add(op, &inputs)
    }

    fn add(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Vec<Value> {
        self.graph.apply(op.into(), inputs).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn one(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        self.apply(op, inputs)[0]
    }

    fn ty(&self, value: Value) -> TensorType {
        self.graph.ty(value).expect("a value of this graph").clone()
    }

    // ---- what is checked

    /// Compares this tensor between backends; returns its name. External tensors that ops write always are.
    pub fn observe(&mut self, value: Value) -> String {
        let observed = self.observed.iter().find(|(v, _)| *v == value).map(|(_, name)| name);
        if let Some(name) = self.names.get(&value).or(observed) {
            return name.clone();
        }
        let name = format!("out{}", self.observed.len());
        self.observed.push((value, name.clone()));
        name
    }

    /// Observes a tensor and compares the reference with values from another formula.
    pub fn expect(&mut self, value: Value, values: Vec<f64>) {
        let name = self.observe(value);
        self.expected.push((name, values));
    }

    /// Does not compare this external tensor, whose content the op's definition leaves open.
    pub fn ignore(&mut self, value: Value) {
        self.ignored.push(self.names[&value].clone());
    }

    /// Observes an output and starts the backward pass from it with a random upstream gradient.
    pub fn seed(&mut self, value: Value) {
        let output = self.observe(value);
        let shape = self.ty(value).shape;
        let upstream = self.normal(&shape);
        let name = self.names[&upstream].clone();
        self.seeds.push((value, upstream, output, name));
    }

    pub fn wrt(&mut self, values: &[Value]) {
        for &value in values {
            let name = self.names[&value].clone();
            self.wrt.push(Wrt { value, name, request: GradRequest::Dense, chosen: None });
        }
    }

    /// Differentiates with respect to chosen elements; with `rows`, also says where each row's elements begin.
    pub fn wrt_chosen(&mut self, value: Value, chosen: &[usize], rows: bool) {
        let index = self.u32s(&[chosen.len()], chosen.iter().copied());
        let row_ptr = rows.then(|| {
            let shape = self.ty(value).shape;
            self.row_ptr(chosen, shape[0], shape[1])
        });
        let name = self.names[&value].clone();
        let request = GradRequest::Sampled { index, row_ptr };
        self.wrt.push(Wrt { value, name, request, chosen: Some(chosen.to_vec()) });
    }

    /// Where each row's elements begin in an ascending index set.
    pub fn row_ptr(&mut self, index: &[usize], rows: usize, columns: usize) -> Value {
        let starts: Vec<usize> = (0..=rows).map(|r| index.partition_point(|&i| i < r * columns)).collect();
        self.u32s(&[rows + 1], starts)
    }

    fn finish(mut self, backward: bool) -> Result<Program, GraphError> {
        let seeds: Vec<(Value, Value)> = self.seeds.iter().map(|s| (s.0, s.1)).collect();
        let requests: Vec<(Value, GradRequest)> = self.wrt.iter().map(|w| (w.value, w.request)).collect();
        let mut stored = std::mem::take(&mut self.observed);
        if backward {
            let grads = gradients(&mut self.graph, &seeds, &requests)?;
            stored.extend(grads.into_iter().zip(&self.wrt).map(|(grad, w)| (grad, gradient_of(&w.name))));
        }
        for (value, name) in stored {
            let ty = self.ty(value);
            let out = self.named(name, Tensor::zeros(ty));
            self.add(sparta_graph::ops::Store {}, &[out, value]);
        }
        Ok(Program {
            graph: self.graph,
            data: self.data,
            seeds: self.seeds.into_iter().map(|s| (s.2, s.3)).collect(),
            wrt: self.wrt,
            expected: self.expected,
            ignored: self.ignored,
            magnitude: self.magnitude,
            // Of rows with an odd number of 16-bit elements, only every 128th starts where a binding may.
            refusable: self.refusable || self.narrowed,
            narrowed: self.narrowed,
        })
    }
}

pub fn gradient_of(name: &str) -> String {
    format!("grad of {name}")
}
