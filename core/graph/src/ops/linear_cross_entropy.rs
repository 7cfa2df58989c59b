use super::*;
use std::ops::Range;

/// Bytes of logits per chunk, which has at least [`LEAST_ROWS`] rows.
const LOGITS: usize = 128 << 20;
/// Fewer rows make the products slow, as each chunk reads the whole weight and its gradient.
const LEAST_ROWS: usize = 256;
/// Ranges that start at a multiple of this many rows begin at aligned bytes in tensors of any width and type.
const UNIT: usize = 128;

/// The weight gradient that [`LinearCrossEntropy`] computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightGrad {
    #[default]
    None,
    Dense,
    /// Of the elements in `index`, as [`SampledGrad`] has them.
    Sampled,
}

/// Cross-entropy of the logits `scale * hidden weight^T`, soft-capped if a cap is given, which are never stored as a
/// whole: chunks of rows are processed one after the other. A row whose label is [`IGNORED`] does not count.
///
/// Gradients are computed in the same pass, for an upstream gradient of 1: the logits of a chunk are replaced by their
/// gradient, which is multiplied by the weight and by the hidden states before the next chunk. So a frozen weight costs
/// two products and a trained one three; recomputing the logits in the backward pass would cost one more (Hsu et al.
/// 2024, "Liger Kernel", arXiv:2410.10989, section 3.2). The gradient rule turns them on.
///
/// Inputs: `hidden` f32 or bf16 `[T, d]`, `weight` of any float type `[V, d]`, `labels` u32 `[T]`, `step`; with sampled
/// weight gradients `index` u32 `[n]` ascending and `row_ptr` u32 `[V + 1]`.
///
/// Outputs: the loss f32 `[1]`, `step[LOSS_WEIGHT]` times the sum of the rows' losses; `lse` f32 `[T]`, the log-sum-exp
/// of each row; then the requested gradients, of `hidden` in its type and of `weight` f32, `[V, d]` or `[n]`. The
/// remaining outputs are scratch memory, without meaning after the call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearCrossEntropy {
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// Rows per chunk: a multiple of 128.
    pub chunk: usize,
    #[serde(default)]
    pub hidden_grad: bool,
    #[serde(default)]
    pub weight_grad: WeightGrad,
}

impl LinearCrossEntropy {
    /// Without gradients, in chunks that suit a vocabulary of this size.
    pub fn new(vocabulary: usize, scale: f32, soft_cap: Option<f32>) -> Self {
        let rows = LOGITS / (4 * vocabulary.max(1)) / UNIT * UNIT;
        let chunk = rows.max(LEAST_ROWS);
        LinearCrossEntropy { scale, soft_cap, chunk, hidden_grad: false, weight_grad: WeightGrad::None }
    }

    fn product(&self, layout: Layout, residual: bool, output: DType) -> Linear {
        Linear { scale: self.scale, residual, output: Some(output), ..Linear::plain(layout) }
    }

    /// The position of each output, and the types of all.
    fn outputs(&self, inputs: &[&TensorType]) -> (Outputs, Vec<TensorType>) {
        let (hidden, weight) = (inputs[0], inputs[1]);
        let (rows, vocabulary) = (hidden.shape[0], weight.shape[0]);
        let chunks = rows.div_ceil(self.chunk);
        let gradients = self.hidden_grad || self.weight_grad != WeightGrad::None;
        let mut types = vec![TensorType::f32([1]), TensorType::f32([rows])];
        let mut output = |wanted: bool, ty: TensorType| {
            wanted.then(|| {
                types.push(ty);
                Slot::Output(types.len() - 1)
            })
        };
        let weight_grad = match self.weight_grad {
            WeightGrad::Sampled => TensorType::f32(inputs[4].shape.clone()),
            _ => TensorType::f32(weight.shape.clone()),
        };
        let logits = TensorType::f32([rows.min(self.chunk), vocabulary]);
        let outputs = Outputs {
            hidden_grad: output(self.hidden_grad, hidden.clone()),
            weight_grad: output(self.weight_grad != WeightGrad::None, weight_grad.clone()),
            logits: output(true, logits.clone()).unwrap_or(LOSS),
            rounded: output(gradients && hidden.dtype != DType::F32, TensorType::new(hidden.dtype, logits.shape)),
            one: output(gradients, TensorType::f32([1])),
            part_loss: output(chunks > 1, TensorType::f32([1])),
            part_grad: output(chunks > 1 && self.weight_grad == WeightGrad::Sampled, weight_grad),
        };
        (outputs, types)
    }

    fn check(&self, inputs: &[&TensorType]) -> Result<(), String> {
        let sampled = self.weight_grad == WeightGrad::Sampled;
        let expected = if sampled { 6 } else { 4 };
        count(inputs, expected..=expected)?;
        activation(inputs[0], "hidden")?;
        floats(inputs[1], "weight")?;
        let (rows, width) = matrix(inputs[0], "hidden")?;
        let (vocabulary, weight_width) = matrix(inputs[1], "weight")?;
        if width != weight_width {
            return Err(format!("hidden has {width} columns, weight {weight_width}"));
        }
        dtype(inputs[2], "labels", DType::U32)?;
        shape(inputs[2], "labels", &[rows])?;
        step_input(inputs[3])?;
        if sampled {
            dtype(inputs[4], "index", DType::U32)?;
            vector(inputs[4], "index")?;
            dtype(inputs[5], "row_ptr", DType::U32)?;
            shape(inputs[5], "row_ptr", &[vocabulary + 1])?;
        }
        if self.chunk == 0 || !self.chunk.is_multiple_of(UNIT) {
            return Err(format!("chunk must be a multiple of {UNIT}, got {}", self.chunk));
        }
        Ok(())
    }
}

const LOSS: Slot = Slot::Output(0);
const LSE: Slot = Slot::Output(1);
const HIDDEN: Slot = Slot::Input(0);
const WEIGHT: Slot = Slot::Input(1);
const LABELS: Slot = Slot::Input(2);
const STEP: Slot = Slot::Input(3);
const INDEX: Slot = Slot::Input(4);
const ROW_PTR: Slot = Slot::Input(5);

struct Outputs {
    hidden_grad: Option<Slot>,
    weight_grad: Option<Slot>,
    /// A chunk of logits, then of their gradient.
    logits: Slot,
    /// That gradient rounded to bf16 for the products, if the hidden states are bf16.
    rounded: Option<Slot>,
    /// The number 1.
    one: Option<Slot>,
    /// Loss and sampled gradient of one chunk, before they are added to the total.
    part_loss: Option<Slot>,
    part_grad: Option<Slot>,
}

/// Collects calls; knows the lengths of the operands.
struct Calls<'a> {
    inputs: &'a [&'a TensorType],
    outputs: Vec<TensorType>,
    parts: Vec<PartCall>,
}

impl Calls<'_> {
    fn all(&self, slot: Slot) -> Rows {
        let ty = match slot {
            Slot::Input(i) => self.inputs[i],
            Slot::Output(o) => &self.outputs[o],
        };
        Rows { slot, rows: 0..ty.shape[0] }
    }

    fn push(&mut self, op: impl Into<Op>, inputs: &[Rows], outputs: impl IntoIterator<Item = Rows>) {
        self.parts.push(PartCall { op: op.into(), inputs: inputs.to_vec(), outputs: outputs.into_iter().collect() });
    }
}

impl LinearCrossEntropy {
    fn push_chunk(&self, calls: &mut Calls, at: &Outputs, rows: Range<usize>) {
        let part = |slot: Slot| Rows { slot, rows: rows.clone() };
        let chunk = |slot: Slot| Rows { slot, rows: 0..rows.len() };
        let (logits, dtype) = (chunk(at.logits), calls.inputs[0].dtype);
        let [weight, step, loss] = [WEIGHT, STEP, LOSS].map(|slot| calls.all(slot));
        let first = rows.start == 0;
        calls.push(self.product(Layout::Nt, false, DType::F32), &[part(HIDDEN), weight.clone()], [logits.clone()]);
        let chunk_loss = at.part_loss.filter(|_| !first).map_or(loss.clone(), |slot| calls.all(slot));
        let forward = CrossEntropy { soft_cap: self.soft_cap };
        calls.push(forward, &[logits.clone(), part(LABELS), step.clone()], [chunk_loss.clone(), part(LSE)]);
        let mut gradient = logits.clone();
        if let Some(one) = at.one {
            let inputs = [logits.clone(), part(LABELS), part(LSE), step, calls.all(one)];
            calls.push(CrossEntropyGrad { soft_cap: self.soft_cap }, &inputs, [logits.clone()]);
            if let Some(rounded) = at.rounded {
                gradient = chunk(rounded);
                calls.push(Cast { to: dtype }, &[logits], [gradient.clone()]);
            }
        }
        if !first {
            calls.push(Accumulate {}, &[loss, chunk_loss], []);
        }
        if let Some(hidden_grad) = at.hidden_grad {
            let op = self.product(Layout::Nn, false, dtype);
            calls.push(op, &[gradient.clone(), weight], [part(hidden_grad)]);
        }
        let Some(weight_grad) = at.weight_grad.map(|slot| calls.all(slot)) else { return };
        let mut inputs = vec![gradient, part(HIDDEN)];
        if self.weight_grad == WeightGrad::Dense {
            inputs.extend((!first).then(|| weight_grad.clone()));
            return calls.push(self.product(Layout::Tn, !first, DType::F32), &inputs, [weight_grad]);
        }
        inputs.extend([INDEX, ROW_PTR].map(|slot| calls.all(slot)));
        let chunk_grad = at.part_grad.filter(|_| !first).map_or(weight_grad.clone(), |slot| calls.all(slot));
        calls.push(SampledGrad { scale: self.scale, sampling: Sampling::Auto }, &inputs, [chunk_grad.clone()]);
        if !first {
            calls.push(Accumulate {}, &[weight_grad, chunk_grad], []);
        }
    }
}

impl Operation for LinearCrossEntropy {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.check(inputs)?;
        Ok(self.outputs(inputs).1)
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        (1..grads.len()).try_for_each(|output| no_grad_of_output("linear_cross_entropy", grads, output))?;
        let [hidden, weight, ..] = node.inputs[..] else { return Ok(()) };
        let Some(d_loss) = grads[0] else { return Ok(()) };
        let (weight_grad, more) = match (ctx.needs(weight), ctx.sampled(weight)) {
            (false, _) => (WeightGrad::None, vec![]),
            (true, Some((index, Some(row_ptr)))) => (WeightGrad::Sampled, vec![index, row_ptr]),
            (true, _) => (WeightGrad::Dense, vec![]),
        };
        let op = LinearCrossEntropy { hidden_grad: ctx.needs(hidden), weight_grad, ..self.clone() };
        let hidden_grad = op.hidden_grad;
        let made = ctx.extend(node, op, &more, 2)?;
        if hidden_grad {
            let grad = ctx.scaled(made[0], d_loss)?;
            ctx.add(hidden, grad)?;
        }
        if weight_grad == WeightGrad::None {
            return Ok(());
        }
        let grad = ctx.scaled(made[usize::from(hidden_grad)], d_loss)?;
        match weight_grad {
            WeightGrad::Sampled => ctx.add_sampled(weight, grad),
            _ => ctx.add(weight, grad),
        }
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn parts(&self, inputs: &[&TensorType]) -> Vec<PartCall> {
        let (at, outputs) = self.outputs(inputs);
        let rows = inputs[0].shape[0];
        let mut calls = Calls { inputs, outputs, parts: vec![] };
        if let Some(one) = at.one {
            let one = calls.all(one);
            calls.push(Fill { value: 1.0, shape: vec![1] }, &[], [one]);
        }
        // At least once, so that the loss is written even without rows.
        for start in (0..rows.max(1)).step_by(self.chunk) {
            self.push_chunk(&mut calls, &at, start..rows.min(start + self.chunk));
        }
        calls.parts
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        let product = 2 * inputs[0].numel() as u64 * inputs[1].shape[0] as u64;
        let dense = 1 + u64::from(self.hidden_grad) + u64::from(self.weight_grad == WeightGrad::Dense);
        let sampled = match self.weight_grad {
            WeightGrad::Sampled => 2 * inputs[0].shape[0] as u64 * inputs[4].numel() as u64,
            _ => 0,
        };
        dense * product + sampled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, Plan, gradients};

    const TOKENS: usize = 4096;
    const VOCABULARY: usize = 256_000;
    const WIDTH: usize = 2048;

    /// The loss of 4,096 tokens against 256,000, with the gradient of the hidden states and of a trained head.
    fn plan(dtype: DType, trained: bool) -> Plan {
        let mut g = Graph::new();
        let hidden = g.external("hidden", dtype, [TOKENS, WIDTH]);
        let weight = g.external("weight", dtype, [VOCABULARY, WIDTH]);
        let labels = g.external("labels", DType::U32, [TOKENS]);
        let step = g.external("step", DType::F32, [step::LEN]);
        let op = LinearCrossEntropy::new(VOCABULARY, 1.0, None);
        let loss = g.one(op, &[hidden, weight, labels, step]).unwrap();
        let one = g.one(Fill { value: 1.0, shape: vec![1] }, &[]).unwrap();
        let mut wanted = vec![hidden];
        wanted.extend(trained.then_some(weight));
        let requests: Vec<_> = wanted.iter().map(|&value| (value, crate::GradRequest::Dense)).collect();
        for (i, grad) in gradients(&mut g, &[(loss, one)], &requests).unwrap().into_iter().enumerate() {
            let shape = g.shape(grad).unwrap().to_vec();
            let out = g.external(format!("out{i}"), DType::F32, shape);
            g.apply(Store {}.into(), &[out, grad]).unwrap();
        }
        Plan::build(&g, true)
    }

    #[test]
    fn scratch_memory_is_a_chunk_of_logits_and_products_are_two_or_three() {
        for (dtype, trained) in [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::BF16, true)] {
            let plan = plan(dtype, trained);
            let gradients = 4 * WIDTH * (2 * TOKENS + if trained { VOCABULARY } else { 0 });
            assert!(plan.arena < gradients + (600 << 20), "{dtype}: {} MiB", (plan.arena - gradients) >> 20);
            let loss = plan.calls.iter().find(|call| call.op.is_loss()).unwrap();
            let product = 2 * (TOKENS * VOCABULARY * WIDTH) as u64;
            assert_eq!(loss.flops(), product * if trained { 3 } else { 2 });
        }
    }

    #[test]
    fn another_upstream_gradient_scales_what_was_made_for_one() {
        let mut g = Graph::new();
        let hidden = g.external("hidden", DType::F32, [3, 4]);
        let weight = g.external("weight", DType::F32, [5, 4]);
        let labels = g.external("labels", DType::U32, [3]);
        let step = g.external("step", DType::F32, [step::LEN]);
        let upstream = g.external("upstream", DType::F32, [1]);
        let loss = g.one(LinearCrossEntropy::new(5, 1.0, None), &[hidden, weight, labels, step]).unwrap();
        gradients(&mut g, &[(loss, upstream)], &[(hidden, crate::GradRequest::Dense)]).unwrap();
        let names: Vec<&str> = g.nodes().iter().map(|node| node.op.name()).collect();
        assert_eq!(names, ["linear_cross_entropy", "scale_by"]);
        assert_eq!(g.nodes()[0].outputs[0], loss);
    }
}
