//! The graphs of a run: forward, backward and optimizer update of one (micro-)batch, evaluation, pooled features.

use crate::Result;
use sparta_graph::ops::{
    Accumulate, Adam, ClipCoef, CrossEntropy, Fill, PARTIALS, Store, SumOfSquares, step as step_input,
};
use sparta_graph::{DType, Graph, Value, gradients, recompute, recompute_cheap};
use sparta_model::forward::{self, Inputs};
use sparta_model::method::{Adaptation, AdaptedLayers, Form, Trained};
use sparta_model::{Decoder, HeadKind};

/// Names of the tensors that the host reads and writes around a run of a plan.
pub mod names {
    pub const TOKENS: &str = "tokens";
    pub const SPANS: &str = "spans";
    pub const ROWS: &str = "rows";
    pub const LABELS: &str = "labels";
    pub const STEP: &str = "step";
    pub const RNG: &str = "rng";
    pub const ROPE: &str = "rope";
    /// Pooled hidden states as an input, for head-only training.
    pub const FEATURES: &str = "features";
    /// Partial sums of squares per trained tensor.
    pub const NORMS: &str = "norms";
    /// Set by a step that is not finite; no update is made until the host clears it.
    pub const LATCH: &str = "latch";
    pub const LOSS: &str = "out.loss";
    /// Gradient norm and clip factor.
    pub const CLIP: &str = "out.clip";
    pub const LOGITS: &str = "out.logits";
    pub const POOLED: &str = "out.pooled";
    /// A copy of the step's numbers, made last: what the host finds there, it knows beforehand.
    pub const CANARY: &str = "out.canary";

    pub fn adam_m(trained: &str) -> String {
        format!("adam.m.{trained}")
    }

    pub fn adam_v(trained: &str) -> String {
        format!("adam.v.{trained}")
    }

    pub fn grad_sum(trained: &str) -> String {
        format!("grad_sum.{trained}")
    }
}

/// AdamW as all methods use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    pub max_grad_norm: Option<f32>,
}

impl Default for Optimizer {
    /// The defaults of torch.optim.AdamW, without decay and clipping.
    fn default() -> Self {
        Optimizer { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: None }
    }
}

/// Rows of a batch: T tokens of N examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    pub rows: usize,
    pub examples: usize,
}

/// What one run of a plan does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A whole optimizer step.
    Step(Size),
    /// The first micro-batch of a step: gradients into the sums.
    FirstMicroBatch(Size),
    /// A later micro-batch: gradients added to the sums.
    MicroBatch(Size),
    /// The update from the gradient sums.
    Update,
    /// Logits and loss.
    Evaluate(Size),
    /// Pooled hidden states.
    Pool(Size),
    /// An optimizer step of the head on pooled hidden states of so many examples.
    HeadStep(usize),
    /// Logits and loss from pooled hidden states.
    HeadEvaluate(usize),
    /// `base + delta` into the weights of sparse parts.
    Scatter,
}

/// Builds graphs for one model and method.
pub struct Graphs<'a> {
    pub decoder: &'a Decoder,
    pub adaptation: &'a Adaptation,
    pub head: HeadKind,
    pub optimizer: &'a Optimizer,
    /// Attention dropout while training.
    pub dropout: f32,
    /// Compute the activations of a layer again in the backward pass.
    pub recompute: bool,
    /// Rows of the rope table.
    pub positions: usize,
}

impl Graphs<'_> {
    pub fn build(&self, purpose: Purpose) -> Result<Graph> {
        let mut graph = Graph::new();
        let g = &mut graph;
        match purpose {
            Purpose::Step(size) => return self.train(graph, size, Gradients::Apply),
            Purpose::FirstMicroBatch(size) => return self.train(graph, size, Gradients::Keep),
            Purpose::MicroBatch(size) => return self.train(graph, size, Gradients::Sum),
            Purpose::Update => self.update_from_sums(g)?,
            Purpose::Evaluate(size) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let logits = self.logits(g, &mut layers, size, None)?;
                self.store_evaluation(g, logits)?;
            }
            Purpose::Pool(size) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let pooled = self.hidden(g, &mut layers, size, None)?;
                store(g, names::POOLED, pooled)?;
            }
            Purpose::HeadStep(examples) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let logits = self.head_logits(g, &mut layers, examples)?;
                self.backward(g, &mut layers, logits, Gradients::Apply)?;
            }
            Purpose::HeadEvaluate(examples) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let logits = self.head_logits(g, &mut layers, examples)?;
                self.store_evaluation(g, logits)?;
            }
            Purpose::Scatter => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                for trained in self.adaptation.trained().iter().filter(|t| t.form == Form::Sparse) {
                    layers.scatter(g, trained)?;
                }
            }
        }
        Ok(graph)
    }

    fn train(&self, mut graph: Graph, size: Size, gradients: Gradients) -> Result<Graph> {
        let g = &mut graph;
        let rng = g.external(names::RNG, DType::U32, [4]);
        let mut layers = AdaptedLayers::new(self.adaptation, Some(rng));
        let dropout = (self.dropout > 0.0).then_some((self.dropout, rng));
        let logits = self.logits(g, &mut layers, size, dropout)?;
        let forward = g.nodes().len();
        self.backward(g, &mut layers, logits, gradients)?;
        Ok(if self.recompute { recompute(&graph, forward) } else { recompute_cheap(&graph, forward) })
    }

    fn hidden(
        &self,
        graph: &mut Graph,
        layers: &mut AdaptedLayers,
        size: Size,
        dropout: Option<(f32, Value)>,
    ) -> Result<Value> {
        let classify = matches!(self.head, HeadKind::Classification { .. });
        let inputs = Inputs {
            tokens: graph.external(names::TOKENS, DType::U32, [size.rows]),
            spans: graph.external(names::SPANS, DType::U32, [size.rows, 2]),
            rope: graph.external(names::ROPE, DType::F32, [self.positions, self.decoder.head_dim]),
            rows: classify.then(|| graph.external(names::ROWS, DType::U32, [size.examples])),
            dropout,
        };
        forward::hidden_states(self.decoder, graph, layers, &inputs)
    }

    fn logits(
        &self,
        graph: &mut Graph,
        layers: &mut AdaptedLayers,
        size: Size,
        dropout: Option<(f32, Value)>,
    ) -> Result<Value> {
        let hidden = self.hidden(graph, layers, size, dropout)?;
        match self.head {
            HeadKind::Classification { .. } => forward::class_logits(graph, layers, hidden),
            HeadKind::CausalLm => forward::vocabulary_logits(self.decoder, graph, layers, hidden),
        }
    }

    fn head_logits(&self, graph: &mut Graph, layers: &mut AdaptedLayers, examples: usize) -> Result<Value> {
        let pooled = graph.external(names::FEATURES, DType::F32, [examples, self.decoder.hidden_size]);
        forward::class_logits(graph, layers, pooled)
    }

    /// Loss of the logits, stored for the host.
    fn loss(&self, graph: &mut Graph, logits: Value) -> Result<Value> {
        graph.set_label("loss");
        let rows = graph.shape(logits)?[0];
        let labels = graph.external(names::LABELS, DType::U32, [rows]);
        let step = graph.external(names::STEP, DType::F32, [step_input::LEN]);
        let loss = graph.one(CrossEntropy::default(), &[logits, labels, step])?;
        store(graph, names::LOSS, loss)?;
        Ok(loss)
    }

    fn store_evaluation(&self, graph: &mut Graph, logits: Value) -> Result<()> {
        self.loss(graph, logits)?;
        if matches!(self.head, HeadKind::Classification { .. }) {
            store(graph, names::LOGITS, logits)?;
        }
        store_canary(graph)
    }

    fn backward(&self, graph: &mut Graph, layers: &mut AdaptedLayers, logits: Value, target: Gradients) -> Result<()> {
        let loss = self.loss(graph, logits)?;
        let one = graph.one(Fill { value: 1.0, shape: vec![1] }, &[])?;
        let trained = self.adaptation.trained();
        let requests: Vec<_> = trained.iter().map(|t| layers.grad_request(graph, t)).collect();
        let grads = gradients(graph, &[(loss, one)], &requests)?;
        graph.set_label("optimizer");
        if target == Gradients::Apply {
            return self.update(graph, layers, &trained, &grads);
        }
        for (t, grad) in trained.iter().zip(grads) {
            let sum = graph.external(names::grad_sum(&t.name), DType::F32, t.shape.as_slice());
            match target {
                Gradients::Sum => graph.apply(Accumulate {}.into(), &[sum, grad])?,
                _ => graph.apply(Store {}.into(), &[sum, grad])?,
            };
        }
        Ok(())
    }

    fn update_from_sums(&self, graph: &mut Graph) -> Result<()> {
        graph.set_label("optimizer");
        let trained = self.adaptation.trained();
        let sums: Vec<Value> =
            trained.iter().map(|t| graph.external(names::grad_sum(&t.name), DType::F32, t.shape.as_slice())).collect();
        let mut layers = AdaptedLayers::new(self.adaptation, None);
        self.update(graph, &mut layers, &trained, &sums)
    }

    /// Clip by the global norm, Adam on every trained tensor, new values into the weights.
    fn update(
        &self,
        graph: &mut Graph,
        layers: &mut AdaptedLayers,
        trained: &[Trained],
        grads: &[Value],
    ) -> Result<()> {
        let norms = graph.external(names::NORMS, DType::F32, [trained.len(), PARTIALS]);
        for (slot, &grad) in grads.iter().enumerate() {
            graph.apply(SumOfSquares { slot }.into(), &[norms, grad])?;
        }
        let [loss, latch] = [names::LOSS, names::LATCH].map(|name| graph.external(name, DType::F32, [1]));
        let clip = graph.one(ClipCoef { max_norm: self.optimizer.max_grad_norm }, &[norms, loss, latch])?;
        store(graph, names::CLIP, clip)?;
        let step = graph.external(names::STEP, DType::F32, [step_input::LEN]);
        let Optimizer { beta1, beta2, eps, weight_decay, .. } = *self.optimizer;
        for (t, &grad) in trained.iter().zip(grads) {
            graph.set_label(format!("optimizer {}", t.name));
            let p = layers.trained(graph, t);
            let m = graph.external(names::adam_m(&t.name), DType::F32, t.shape.as_slice());
            let v = graph.external(names::adam_v(&t.name), DType::F32, t.shape.as_slice());
            graph
                .apply(Adam { beta1, beta2, eps, weight_decay, lr_factor: 1.0 }.into(), &[p, m, v, grad, clip, step])?;
            if t.form == Form::Sparse {
                layers.scatter(graph, t)?;
            }
        }
        store_canary(graph)
    }
}

/// What becomes of the gradients of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradients {
    Apply,
    Keep,
    Sum,
}

fn store_canary(graph: &mut Graph) -> Result<()> {
    let step = graph.external(names::STEP, DType::F32, [step_input::LEN]);
    store(graph, names::CANARY, step)
}

fn store(graph: &mut Graph, name: &str, value: Value) -> Result<()> {
    let ty = graph.ty(value)?.clone();
    let destination = graph.external(name, ty.dtype, ty.shape);
    graph.apply(Store {}.into(), &[destination, value])?;
    Ok(())
}
