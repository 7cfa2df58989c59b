//! A method's own operations: kernels compared with the subgraph, and gradient rules with differences.

use super::{Layer, STEP, TOLERANCE, Tensor, given, is_linear, one, run, sites};
use crate::Error;
use crate::backend::Backend;
use crate::graph::Recorder;
use crate::method::{Method, Options};
use sparta_graph::ops::{Add, Fill, Own, OwnKernel, OwnOp, Scale};
use sparta_graph::{DType, GradRequest, Graph, Op, Value, gradients};

/// By how much the results of a kernel in f32 may differ from those of the subgraph in f32, relative to the largest:
/// sums of a few numbers in a different order, and functions that are off by a few units in the last place.
const KERNEL: f64 = 1e-4;

/// A method's own operation, on inputs that it has in a small model.
pub struct OwnCase {
    /// The operation as the method defines it.
    pub op: OwnOp,
    /// The parameter at which it was found.
    pub place: String,
    /// All of them f32.
    pub inputs: Vec<Tensor>,
}

/// The method's own operations on f32 in [`model`](super::model), each once for each shape of its inputs.
///
/// Errors: those of the method, and of the backend that computes the inputs.
pub fn own_operations(
    method: &dyn Method,
    options: &Options,
    backend: &mut dyn Backend,
) -> Result<Vec<OwnCase>, Error> {
    let mut all: Vec<OwnCase> = Vec::new();
    for layer in sites(method, options)? {
        for case in layer.own(backend)? {
            let shapes = |case: &OwnCase| case.inputs.iter().map(|input| input.shape.clone()).collect::<Vec<_>>();
            if !all.iter().any(|known| known.op == case.op && shapes(known) == shapes(&case)) {
                all.push(case);
            }
        }
    }
    Ok(all)
}

impl Layer<'_> {
    /// The method's own operations in everything that it builds for this parameter.
    fn own(&self, backend: &mut dyn Backend) -> Result<Vec<OwnCase>, Error> {
        let (inputs, mut graph) = (self.inputs(true), Graph::new());
        let (values, rng) = given(&mut graph, &inputs);
        let (w, extra) = (values[1], &values[2..]);
        let mut recorder = Recorder { graph: &mut graph, rng: Some(rng) };
        let lr = one(&mut recorder, Fill { value: 0.01, shape: vec![1] }, &[])?;
        if is_linear(&self.parameter) {
            self.forward(&mut recorder, &values)?;
        }
        if self.method.mergeable() {
            self.method.merge(&self.site(false), &mut recorder, w, extra)?;
        }
        self.method.penalty(&self.site(true), &mut recorder, w, extra)?;
        self.method.update(&self.site(true), &mut recorder, extra, lr)?;
        let own = graph.nodes().iter().filter_map(|node| match &node.op {
            Op::Own(own) => Some((own.0.as_ref().clone(), node.inputs.clone())),
            _ => None,
        });
        let in_f32 = |v: &Value| graph.ty(*v).is_ok_and(|ty| ty.dtype == DType::F32);
        let own: Vec<(OwnOp, Vec<Value>)> = own.filter(|(_, inputs)| inputs.iter().all(in_f32)).collect();
        let wanted: Vec<Value> = own.iter().flat_map(|(_, inputs)| inputs.clone()).collect();
        let mut tensors = run(backend, graph, &inputs, &wanted, Some(&[]))?.into_iter();
        let case = |(op, inputs): (OwnOp, Vec<Value>)| OwnCase {
            op,
            place: self.parameter.name.clone(),
            inputs: tensors.by_ref().take(inputs.len()).collect(),
        };
        Ok(own.into_iter().map(case).collect())
    }
}

impl OwnCase {
    fn wrong(&self, what: String) -> Error {
        Error(format!("`{}` of {}: {what}", self.op.name, self.place))
    }

    fn outputs(&self, backend: &mut dyn Backend, kernels: &[OwnKernel]) -> Result<Vec<Tensor>, Error> {
        let mut graph = Graph::new();
        let (values, _) = given(&mut graph, &self.inputs);
        let outputs = graph.apply(self.node(), &values).map_err(|e| Error(e.to_string()))?;
        run(backend, graph, &self.inputs, &outputs, Some(kernels))
    }

    fn node(&self) -> Op {
        Own(Box::new(self.op.clone())).into()
    }

    /// Compares what its kernels compute on this backend with what the subgraph does; returns those that were compared.
    ///
    /// Errors: different results; those of the backend.
    pub fn check_kernels(&self, backend: &mut dyn Backend) -> Result<Vec<OwnKernel>, Error> {
        let mut compared = backend.info().own_kernels;
        compared.retain(|&kernel| self.op.runs(kernel, &[]));
        for &kernel in &compared {
            let expected = self.outputs(backend, &[])?;
            let got = self.outputs(backend, &[kernel])?;
            for ((name, expected), got) in self.op.outputs.iter().zip(&expected).zip(&got) {
                let difference = expected.difference(got);
                // Written so that NaN fails.
                let agree = difference <= KERNEL;
                if !agree {
                    let what = match kernel {
                        OwnKernel::Wgsl => "its WGSL kernel",
                        OwnKernel::Function => "its function for the CPU",
                    };
                    return Err(self.wrong(format!(
                        "{what} computes a different `{name}` than its subgraph: they differ by {difference:.1e} of \
                         the largest number, expected at most {KERNEL:e}"
                    )));
                }
            }
        }
        Ok(compared)
    }

    /// Compares its gradient rule with differences; `false` if it has none, or one that passes gradients straight
    /// through on purpose. Meant for a backend in f64.
    ///
    /// Errors: they disagree; those of the backend.
    pub fn check_gradient(&self, backend: &mut dyn Backend) -> Result<bool, Error> {
        let Some(rule) = self.op.gradient.as_ref().filter(|rule| !rule.straight_through) else { return Ok(false) };
        for &of in &rule.of {
            let at = of as usize;
            let (analytic, numeric) = self.slopes(backend, at)?;
            let sum = |terms: &[f64]| terms.iter().sum::<f64>();
            let size = |terms: &[f64]| terms.iter().map(|term| term.abs()).sum::<f64>();
            let (a, n) = (sum(&analytic), sum(&numeric));
            // Written so that NaN fails.
            let agree = (a - n).abs() <= TOLERANCE * (size(&analytic) + size(&numeric));
            if !agree {
                let input = &self.op.inputs[at];
                return Err(self.wrong(format!(
                    "its gradient of `{input}` along a direction is {a:e}, by differences {n:e}; if that is intended, \
                     declare it as straight-through"
                )));
            }
        }
        Ok(true)
    }

    /// How the outputs change along a direction of an input: by the rule and by differences, as terms to be added up.
    fn slopes(&self, backend: &mut dyn Backend, at: usize) -> Result<(Vec<f64>, Vec<f64>), Error> {
        let fail = |e: sparta_graph::GraphError| Error(e.to_string());
        let direction = Tensor::normal(&self.inputs[at].shape, 200);
        let shapes = self.outputs(backend, &[])?;
        let upstream = shapes.iter().zip(300..).map(|(output, seed)| Tensor::normal(&output.shape, seed));
        let upstream: Vec<Tensor> = upstream.collect();
        let all = [&self.inputs[..], std::slice::from_ref(&direction), &upstream].concat();
        let mut graph = Graph::new();
        let (values, _) = given(&mut graph, &all);
        let (own, rest) = values.split_at(self.inputs.len());
        let (along, upstreams) = (rest[0], &rest[1..]);
        let at_step = |graph: &mut Graph, step: f32| {
            let mut moved = own.to_vec();
            let change = graph.one(Scale { factor: step }, &[along])?;
            moved[at] = graph.one(Add {}, &[moved[at], change])?;
            let outputs = graph.apply(self.node(), &moved)?;
            outputs.iter().map(|&y| graph.one(Scale { factor: 0.5 / step }, &[y])).collect::<Result<Vec<_>, _>>()
        };
        // Both are divided by the distance, the second with its sign.
        let (after, before) = (at_step(&mut graph, STEP).map_err(fail)?, at_step(&mut graph, -STEP).map_err(fail)?);
        let both = after.iter().zip(&before).map(|(&a, &b)| graph.one(Add {}, &[a, b]));
        let mut wanted = both.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        let outputs = graph.apply(self.node(), own).map_err(fail)?;
        let seeds: Vec<(Value, Value)> = outputs.into_iter().zip(upstreams.iter().copied()).collect();
        wanted.extend(gradients(&mut graph, &seeds, &[(own[at], GradRequest::Dense)]).map_err(fail)?);
        let mut results = run(backend, graph, &all, &wanted, Some(&[]))?;
        let gradient = results.pop().unwrap_or(Tensor { shape: vec![], values: vec![] });
        let products = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).collect();
        let analytic: Vec<f64> = products(&gradient.values, &direction.values);
        let numeric =
            results.iter().zip(&upstream).flat_map(|(slope, u)| -> Vec<f64> { products(&slope.values, &u.values) });
        Ok((analytic, numeric.collect()))
    }
}
