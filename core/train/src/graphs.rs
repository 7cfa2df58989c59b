//! The graphs of a run: forward, backward and optimizer update of one (micro-)batch, evaluation, pooled features.

use crate::Result;
use crate::batch::Size;
use crate::buckets::{Bucket, buckets, join};
use crate::objective::{Loss, LossInputs, Objective};
use crate::optimizer::Optimization;
use crate::whole::{WholeGroup, whole_groups};
use sparta_graph::ops::{Accumulate, Add, Concat, Embed, Fill, Store, step as step_input};
use sparta_graph::{DType, GradRequest, Graph, Value, gradients, recompute, recompute_cheap};
use sparta_model::Decoder;
use sparta_model::forward::{self, Cache, Inputs};
use sparta_model::method::{Adaptation, AdaptedLayers};

/// Names of the tensors that the host reads and writes around a run of a plan.
pub mod names {
    pub const TOKENS: &str = "tokens";
    pub const SPANS: &str = "spans";
    pub const ROWS: &str = "rows";
    pub const LABELS: &str = "labels";
    pub const STEP: &str = "step";
    /// The learning rate among them.
    pub const LR: &str = "step.lr";
    pub const RNG: &str = "rng";
    /// Pooled hidden states as an input for head-only training.
    pub const FEATURES: &str = "features";
    /// Partial sums of squares per trained tensor, in the order of the buckets.
    pub const NORMS: &str = "norms";
    /// Set by a step that is not finite; blocks updates until the host clears it.
    pub const LATCH: &str = "latch";
    /// The sum of the losses of a step's micro-batches so far.
    pub const LOSS_SUM: &str = "loss_sum";
    /// Receives the losses of other processes' micro-batches.
    pub const LOSS_INCOMING: &str = "loss_incoming";
    /// Everything the host reads after a step or an evaluation, in one tensor: [`super::results`].
    pub const RESULTS: &str = "out.results";
    pub const POOLED: &str = "out.pooled";
    /// For each decoded row: its position, the cache row that its key and value go to, and the cache rows
    /// that it sees.
    pub const POSITIONS: &str = "positions";
    pub const CACHE_ROWS: &str = "cache_rows";
    pub const SEEN: &str = "seen";
    /// Hidden states of all rows, and their vocabulary logits, for inspection.
    pub const STATES: &str = "out.states";
    pub const VOCABULARY: &str = "out.vocabulary";

    /// The table of a rotation.
    pub fn rope(rotation: usize) -> String {
        format!("rope.{rotation}")
    }

    /// The gradients of whole weights, as parts of one tensor.
    pub const WHOLE_GRADIENTS: &str = "whole_gradients";

    pub fn whole_gradient(parameter: &str) -> String {
        format!("whole_gradient.{parameter}")
    }

    pub fn grad_sum(trained: &str) -> String {
        format!("grad_sum.{trained}")
    }
}

/// The host's scalars of one step: [`names::STEP`].
pub(crate) type StepNumbers = [f32; step_input::LEN];

/// The parts of [`names::RESULTS`]: the element at which each begins, and the total length. They include the step's
/// numbers, which the host knows beforehand: if they differ, the device did not run what was submitted.
pub mod results {
    use sparta_graph::ops::{Concat, step};

    /// After a step: loss; gradient norm and clip factor; the step's numbers.
    pub fn of_step() -> ([usize; 3], usize) {
        layout([1, 2, step::LEN])
    }

    /// After an evaluation: loss; the step's numbers; logits.
    pub fn of_evaluation(logits: usize) -> ([usize; 3], usize) {
        layout([1, step::LEN, logits])
    }

    /// After decoding: the step's numbers; logits.
    pub fn of_decoding(vocabulary: usize) -> ([usize; 2], usize) {
        let (begins, length) = Concat::layout([step::LEN, vocabulary]);
        ([begins[0], begins[1]], length)
    }

    fn layout(lengths: [usize; 3]) -> ([usize; 3], usize) {
        let (begins, length) = Concat::layout(lengths);
        ([begins[0], begins[1], begins[2]], length)
    }
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
    /// A micro-batch of a step that processes share: gradients go to the receive buffers, not into the sums.
    Apart { size: Size, first: bool },
    /// Adds the received gradients of a bucket to its sums; after the last bucket, also the loss.
    AddIncoming(usize),
    /// The update from the gradient sums.
    Update,
    /// Logits and loss.
    Evaluate(Size),
    /// Pooled hidden states.
    Pool(Size),
    /// An optimizer step of the head on pooled hidden states of this many examples.
    HeadStep(usize),
    /// Logits and loss, from pooled hidden states.
    HeadEvaluate(usize),
    /// Writes trained values into the weights that the forward pass reads: sparse deltas and rounded copies.
    Follow,
    /// The gradients of a group of whole weights, for the first micro-batch or added to those of earlier ones.
    WholeGradients { size: Size, group: usize, first: bool },
    /// Stores keys and values of `rows` rows in a cache of `cache` rows, and gives the vocabulary logits of one of
    /// them.
    Decode { rows: usize, cache: usize },
}

/// Builds the graphs for one model and method.
pub struct Graphs<'a> {
    pub decoder: &'a Decoder,
    pub adaptation: &'a Adaptation,
    pub objective: &'a dyn Objective,
    pub optimization: &'a Optimization,
    /// The probability of attention dropout in training.
    pub dropout: f32,
    /// Whether the backward pass recomputes each layer's activations.
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
            Purpose::Apart { size, first } => return self.train(graph, size, Gradients::Apart { first }),
            Purpose::AddIncoming(bucket) => self.add_incoming(g, bucket)?,
            Purpose::WholeGradients { size, group, first } => {
                return self.whole_gradients(graph, size, &whole_groups(self.adaptation)[group], first);
            }
            Purpose::Update => self.update_from_sums(g)?,
            Purpose::Evaluate(size) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let hidden = self.hidden(g, &mut layers, size, None)?;
                self.evaluate(g, &mut layers, hidden, size)?;
            }
            Purpose::Pool(size) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let pooled = self.hidden(g, &mut layers, size, None)?;
                store(g, names::POOLED, pooled)?;
            }
            Purpose::HeadStep(examples) => {
                let rng = g.external(names::RNG, DType::U32, [4]);
                let mut layers = AdaptedLayers::new(self.adaptation, Some(rng));
                let (pooled, size) = self.features(g, examples);
                let loss = self.loss(g, &mut layers, pooled, size)?;
                let loss = penalised(g, &mut layers, loss)?;
                self.backward(g, &mut layers, loss, Gradients::Apply)?;
            }
            Purpose::HeadEvaluate(examples) => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                let (pooled, size) = self.features(g, examples);
                self.evaluate(g, &mut layers, pooled, size)?;
            }
            Purpose::Follow => {
                let mut layers = AdaptedLayers::new(self.adaptation, None);
                for trained in &self.adaptation.trained() {
                    layers.follow(g, trained)?;
                }
            }
            Purpose::Decode { rows, cache } => self.decode(g, rows, cache)?,
        }
        Ok(graph)
    }

    fn decode(&self, graph: &mut Graph, rows: usize, len: usize) -> Result<()> {
        let mut layers = AdaptedLayers::new(self.adaptation, None);
        let inputs = self.inputs(graph, Size { rows, examples: 1 }, None);
        let mut rows_of = |name: &str| graph.external(name, DType::U32, [rows]);
        let (positions, places) = (rows_of(names::POSITIONS), rows_of(names::CACHE_ROWS));
        let cache = Cache { len, rows: places, seen: graph.external(names::SEEN, DType::U32, [rows, 2]) };
        // A rotation looks up a row's angles by its place among these rows.
        let angles = |table: &Value| graph.one(Embed { scale: 1.0, padding: None }, &[*table, positions]);
        let ropes = inputs.ropes.iter().map(angles).collect::<std::result::Result<_, _>>()?;
        let last = graph.external(names::ROWS, DType::U32, [1]);
        let inputs = Inputs { ropes, rows: Some(last), cache: Some(cache), ..inputs };
        let hidden = forward::hidden_states(self.decoder, graph, &mut layers, &inputs)?;
        let logits = forward::vocabulary_logits(self.decoder, graph, &mut layers, hidden)?;
        let numbers = step_numbers(graph);
        store_joined(graph, names::RESULTS, &[numbers, logits])
    }

    /// Hidden states of all rows, and their vocabulary logits if the objective has no classification head.
    pub fn inspect(&self, size: Size) -> Result<Graph> {
        let mut graph = Graph::new();
        let mut layers = AdaptedLayers::new(self.adaptation, None);
        let inputs = self.inputs(&mut graph, size, None);
        let hidden = forward::hidden_states(self.decoder, &mut graph, &mut layers, &Inputs { rows: None, ..inputs })?;
        store(&mut graph, names::STATES, hidden)?;
        if !self.objective.pools() {
            let logits = forward::vocabulary_logits(self.decoder, &mut graph, &mut layers, hidden)?;
            store(&mut graph, names::VOCABULARY, logits)?;
        }
        Ok(graph)
    }

    fn train(&self, mut graph: Graph, size: Size, gradients: Gradients) -> Result<Graph> {
        let g = &mut graph;
        let rng = g.external(names::RNG, DType::U32, [4]);
        let mut layers = AdaptedLayers::new(self.adaptation, Some(rng));
        let dropout = (self.dropout > 0.0).then_some((self.dropout, rng));
        let hidden = self.hidden(g, &mut layers, size, dropout)?;
        let mut loss = self.loss(g, &mut layers, hidden, size)?;
        if !matches!(gradients, Gradients::Sum | Gradients::Apart { first: false }) {
            // All micro-batches of a step see the same trained values, so the penalty is added to the first only.
            loss = penalised(g, &mut layers, loss)?;
        }
        let forward = g.nodes().len();
        self.backward(g, &mut layers, loss, gradients)?;
        Ok(if self.recompute { recompute(&graph, forward) } else { recompute_cheap(&graph, forward) })
    }

    /// Without dropout, since the step's cannot be repeated.
    fn whole_gradients(&self, mut graph: Graph, size: Size, group: &WholeGroup, first: bool) -> Result<Graph> {
        let g = &mut graph;
        let mut layers = AdaptedLayers::new(self.adaptation, None);
        let hidden = self.hidden(g, &mut layers, size, None)?;
        let loss = self.loss(g, &mut layers, hidden, size)?.loss;
        let forward = g.nodes().len();
        let one = g.one(Fill { value: 1.0, shape: vec![1] }, &[])?;
        let positions = || group.parts.iter().map(|&(position, _)| position);
        let names = positions().map(|position| self.adaptation.parameters[position].name.as_str());
        // With respect to the stored weights: a reparametrized one is not used in its merged form.
        let requests: Vec<_> = positions().map(|position| (layers.stored(g, position), GradRequest::Dense)).collect();
        for (name, gradient) in names.zip(gradients(g, &[(loss, one)], &requests)?) {
            let shape = g.shape(gradient)?.to_vec();
            let sum = g.external(names::whole_gradient(name), DType::F32, shape);
            match first {
                true => g.apply(Store {}.into(), &[sum, gradient])?,
                false => g.apply(Accumulate {}.into(), &[sum, gradient])?,
            };
        }
        Ok(if self.recompute { recompute(&graph, forward) } else { recompute_cheap(&graph, forward) })
    }

    fn inputs(&self, graph: &mut Graph, size: Size, dropout: Option<(f32, Value)>) -> Inputs {
        Inputs {
            tokens: graph.external(names::TOKENS, DType::U32, [size.rows]),
            spans: graph.external(names::SPANS, DType::U32, [size.rows, 2]),
            ropes: (self.decoder.ropes.iter().enumerate())
                .map(|(i, rope)| graph.external(names::rope(i), DType::F32, [self.positions, rope.width]))
                .collect(),
            rows: self.objective.pools().then(|| graph.external(names::ROWS, DType::U32, [size.examples])),
            dropout,
            cache: None,
        }
    }

    /// The hidden states that the objective reads.
    fn hidden(
        &self,
        graph: &mut Graph,
        layers: &mut AdaptedLayers,
        size: Size,
        dropout: Option<(f32, Value)>,
    ) -> Result<Value> {
        let inputs = self.inputs(graph, size, dropout);
        forward::hidden_states(self.decoder, graph, layers, &inputs)
    }

    /// Pooled hidden states as an input.
    fn features(&self, graph: &mut Graph, examples: usize) -> (Value, Size) {
        let pooled = graph.external(names::FEATURES, DType::F32, [examples, self.decoder.hidden_size]);
        (pooled, Size { rows: 0, examples })
    }

    /// The objective's loss.
    fn loss(&self, graph: &mut Graph, layers: &mut AdaptedLayers, hidden: Value, size: Size) -> Result<Loss> {
        let labels = self.objective.labels(size);
        let labels = graph.external(names::LABELS, labels.dtype, labels.shape);
        let step = step_numbers(graph);
        self.objective.loss(graph, layers, self.decoder, LossInputs { hidden, labels, step })
    }

    fn evaluate(&self, graph: &mut Graph, layers: &mut AdaptedLayers, hidden: Value, size: Size) -> Result<()> {
        let Loss { loss, outputs } = self.loss(graph, layers, hidden, size)?;
        let mut parts = vec![loss, step_numbers(graph)];
        if let Some(outputs) = outputs {
            parts.push(outputs);
        }
        store_joined(graph, names::RESULTS, &parts)
    }

    fn add_incoming(&self, graph: &mut Graph, number: usize) -> Result<()> {
        let buckets = buckets(self.adaptation.trained(), self.optimization);
        let (sum, incoming, len) = match buckets.get(number) {
            Some(bucket) => (bucket.gradient_sums(), bucket.incoming_gradients(), bucket.len),
            None => (names::LOSS_SUM.to_owned(), names::LOSS_INCOMING.to_owned(), 1),
        };
        let [sum, incoming] = [sum, incoming].map(|name| graph.external(name, DType::F32, [len]));
        graph.apply(Accumulate {}.into(), &[sum, incoming])?;
        Ok(())
    }

    fn backward(&self, graph: &mut Graph, layers: &mut AdaptedLayers, loss: Loss, target: Gradients) -> Result<()> {
        let loss = loss.loss;
        let one = graph.one(Fill { value: 1.0, shape: vec![1] }, &[])?;
        let buckets = buckets(self.adaptation.trained(), self.optimization);
        let trained = buckets.iter().flat_map(|bucket| &bucket.parts);
        let requests: Vec<_> = trained.map(|part| layers.grad_request(graph, &part.trained)).collect();
        let grads = gradients(graph, &[(loss, one)], &requests)?;
        graph.set_label("optimizer");
        let joined = join(graph, &buckets, &grads)?;
        if target == Gradients::Apply {
            return self.update(graph, layers, &buckets, &joined, loss);
        }
        let apart = matches!(target, Gradients::Apart { .. });
        let name = |bucket: &Bucket| if apart { bucket.incoming_gradients() } else { bucket.gradient_sums() };
        let of_loss = if apart { names::LOSS_INCOMING } else { names::LOSS_SUM };
        let sums = buckets.iter().map(|bucket| (name(bucket), bucket.len)).chain([(of_loss.to_owned(), 1)]);
        for ((name, len), value) in sums.zip(joined.into_iter().chain([loss])) {
            let sum = graph.external(name, DType::F32, [len]);
            match target {
                Gradients::Sum => graph.apply(Accumulate {}.into(), &[sum, value])?,
                _ => graph.apply(Store {}.into(), &[sum, value])?,
            };
        }
        Ok(())
    }
}

/// The loss plus the method's penalties.
fn penalised(graph: &mut Graph, layers: &mut AdaptedLayers, mut loss: Loss) -> Result<Loss> {
    graph.set_label("penalty");
    for term in layers.penalties(graph)? {
        loss.loss = graph.one(Add {}, &[loss.loss, term])?;
    }
    graph.set_label("loss");
    Ok(loss)
}

/// What to do with the gradients of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradients {
    Apply,
    Keep,
    Sum,
    Apart { first: bool },
}

/// The step's numbers, which the host writes.
pub(crate) fn step_numbers(graph: &mut Graph) -> Value {
    graph.external(names::STEP, DType::F32, [step_input::LEN])
}

/// Stores tensors, joined into one.
pub(crate) fn store_joined(graph: &mut Graph, name: &str, parts: &[Value]) -> Result<()> {
    let joined = graph.one(Concat {}, parts)?;
    store(graph, name, joined)
}

fn store(graph: &mut Graph, name: &str, value: Value) -> Result<()> {
    let ty = graph.ty(value)?.clone();
    let destination = graph.external(name, ty.dtype, ty.shape);
    graph.apply(Store {}.into(), &[destination, value])?;
    Ok(())
}
