//! Which tensors a session keeps on the device, their sizes and their initial values.

use crate::batch::{Size, padded_rows};
use crate::buckets::Bucket;
use crate::graphs::{Purpose, names, results};
use crate::setup::{HeadInit, SessionLimits, Setup};
use crate::tensors::{DeviceTensors, MemoryKind, buffer_bytes, make_room};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::ops::{PARTIALS, step as step_input};
use sparta_graph::{Backend, DType, DeviceInfo, Graph, Op};
use sparta_kernels::Bounds;
use sparta_model::forward::cache_names;
use sparta_model::method::layers::{
    base_name, column_ptr_name, index_name, order_name, remainder_name, row_ptr_name, shadow_name,
};
use sparta_model::method::{Form, TrainMode, philox};
use sparta_model::{Arrangement, Storage, TensorView, WeightSource, to_f32};
use sparta_plugin::method::{Init, Parameter};
use std::collections::BTreeMap;

/// The size of a batch of `examples` sequences with `tokens` tokens in total.
pub fn size_of(tokens: usize, examples: usize) -> Size {
    Size { rows: padded_rows(tokens), examples }
}

pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    pub len: usize,
    pub kind: MemoryKind,
    /// The tensor that it is a part of, and the element at which it begins there; parts are listed after the whole.
    pub part_of: Option<(String, usize)>,
}

impl TensorSpec {
    fn new(name: String, dtype: DType, len: usize, kind: MemoryKind) -> Self {
        TensorSpec { name, dtype, len, kind, part_of: None }
    }

    /// Bytes of its own.
    fn bytes(&self) -> u64 {
        if self.part_of.is_some() { 0 } else { buffer_bytes(self.dtype, self.len) }
    }
}

/// The name of a trained tensor's optimizer slot on the device and in checkpoints.
pub(crate) fn slot_name(slot: &str, trained: &str) -> String {
    format!("{slot}.{trained}")
}

/// All tensors of a session except the arena.
pub fn tensors(setup: &Setup) -> Vec<TensorSpec> {
    let mut list = Vec::new();
    let adaptation = &setup.adaptation;
    let whole = |i: &usize| !matches!(adaptation.modes[*i], TrainMode::Dense);
    for (i, parameter) in adaptation.parameters.iter().enumerate().filter(|(i, _)| whole(i)) {
        let ty = adaptation.device_type(i);
        list.push(TensorSpec::new(parameter.name.clone(), ty.dtype, ty.numel(), MemoryKind::Weights));
    }
    for (_, parameter) in adaptation.parameters.iter().enumerate().filter(|(i, _)| adaptation.is_shadowed(*i)) {
        let (name, dtype) = (shadow_name(&parameter.name), adaptation.precision.products);
        list.push(TensorSpec::new(name, dtype, parameter.numel() as usize, MemoryKind::Weights));
    }
    for t in adaptation.trained().iter().filter(|t| t.form == Form::Sparse) {
        let (parameter, len) = (&adaptation.parameters[t.parameter], t.numel());
        let mut add = |name, dtype, len, kind| list.push(TensorSpec::new(name, dtype, len, kind));
        add(index_name(&parameter.name), DType::U32, len, MemoryKind::Indices);
        add(base_name(&parameter.name), adaptation.device_dtype(t.parameter), len, MemoryKind::BaseValues);
        if let [rows, columns] = parameter.shape[..] {
            add(row_ptr_name(&parameter.name), DType::U32, rows + 1, MemoryKind::Indices);
            if adaptation.has_remainder(t.parameter) {
                add(remainder_name(&parameter.name), DType::F32, len, MemoryKind::Adapter);
                add(order_name(&parameter.name), DType::U32, len, MemoryKind::Indices);
                add(column_ptr_name(&parameter.name), DType::U32, columns + 1, MemoryKind::Indices);
            }
        }
    }
    for constant in adaptation.constants() {
        let len = constant.numel();
        list.push(TensorSpec::new(constant.name, DType::F32, len, MemoryKind::Adapter));
    }
    whole_gradients(setup, &mut list);
    let buckets = setup.buckets();
    buckets.iter().for_each(|bucket| bucket_tensors(setup, bucket, &mut list));
    buffers(setup, buckets.iter().map(|bucket| bucket.parts.len()).sum(), &mut list);
    if let Some(tokens) = setup.limits.cache {
        let (dtype, width) = (adaptation.precision.activations, setup.decoder.kv_heads * setup.decoder.head_dim);
        let kept = (0..setup.decoder.layers).flat_map(cache_names);
        list.extend(kept.map(|name| TensorSpec::new(name, dtype, tokens * width, MemoryKind::Cache)));
    }
    list
}

/// The flat tensors of a bucket, each followed by its parts.
fn bucket_tensors(setup: &Setup, bucket: &Bucket, list: &mut Vec<TensorSpec>) {
    let mut add = |whole: String, dtype, kind, name: &dyn Fn(&str) -> String| {
        list.push(TensorSpec::new(whole.clone(), dtype, bucket.len, kind));
        list.extend(bucket.parts.iter().map(|part| {
            let spec = TensorSpec::new(name(&part.trained.name), dtype, part.trained.numel(), kind);
            TensorSpec { part_of: Some((whole.clone(), part.begin)), ..spec }
        }));
    };
    add(bucket.values(), DType::F32, bucket.kind, &str::to_owned);
    if setup.limits.train.is_none() {
        return;
    }
    for slot in setup.optimization.optimizer.slots() {
        add(bucket.slot(slot.name), slot.dtype, MemoryKind::Optimizer, &|name| slot_name(slot.name, name));
    }
    if setup.keeps_sums() {
        add(bucket.gradient_sums(), DType::F32, MemoryKind::Gradients, &names::grad_sum);
    }
    if setup.shares_gradients() {
        list.push(TensorSpec::new(bucket.incoming_gradients(), DType::F32, bucket.len, MemoryKind::Gradients));
    }
    list.push(TensorSpec::new(bucket.table(), DType::U32, 2 * bucket.parts.len(), MemoryKind::Buffers));
}

/// The gradients of whole weights that are computed together, one group at a time in the same memory.
fn whole_gradients(setup: &Setup, list: &mut Vec<TensorSpec>) {
    let groups = setup.whole_groups();
    let len = groups.iter().map(|group| group.len).max().unwrap_or(0);
    if len > 0 {
        list.push(TensorSpec::new(names::WHOLE_GRADIENTS.into(), DType::F32, len, MemoryKind::Gradients));
    }
    for (position, begin) in groups.into_iter().flat_map(|group| group.parts) {
        let parameter = &setup.adaptation.parameters[position];
        let name = names::whole_gradient(&parameter.name);
        let spec = TensorSpec::new(name, DType::F32, parameter.numel() as usize, MemoryKind::Gradients);
        list.push(TensorSpec { part_of: Some((names::WHOLE_GRADIENTS.into(), begin)), ..spec });
    }
}

fn buffers(setup: &Setup, trained: usize, list: &mut Vec<TensorSpec>) {
    let (rows, examples) = (setup.limits.max_rows(), setup.limits.max_examples());
    let hidden = setup.decoder.hidden_size;
    let mut buffer = |name: &str, dtype, len| list.push(TensorSpec::new(name.into(), dtype, len, MemoryKind::Buffers));
    buffer(names::TOKENS, DType::U32, rows);
    buffer(names::SPANS, DType::U32, 2 * rows);
    let labels = setup.objective.labels(Size { rows, examples });
    buffer(names::LABELS, labels.dtype, labels.numel());
    buffer(names::STEP, DType::F32, step_input::LEN);
    buffer(names::RNG, DType::U32, 4);
    list.push(TensorSpec {
        part_of: Some((names::STEP.into(), step_input::LR)),
        ..TensorSpec::new(names::LR.into(), DType::F32, 1, MemoryKind::Buffers)
    });
    let mut buffer = |name: &str, dtype, len| list.push(TensorSpec::new(name.into(), dtype, len, MemoryKind::Buffers));
    for (i, rope) in setup.decoder.ropes.iter().enumerate() {
        buffer(&names::rope(i), DType::F32, setup.limits.positions * rope.width);
    }
    let outputs = examples * setup.objective.outputs();
    let decoded = setup.limits.cache.map_or(0, |_| results::of_decoding(setup.decoder.vocab_size).1);
    buffer(names::RESULTS, DType::F32, results::of_step().1.max(results::of_evaluation(outputs).1).max(decoded));
    if setup.objective.pools() || setup.limits.cache.is_some() {
        buffer(names::ROWS, DType::U32, examples);
    }
    if setup.limits.cache.is_some() {
        buffer(names::POSITIONS, DType::U32, rows);
        buffer(names::CACHE_ROWS, DType::U32, rows);
        buffer(names::SEEN, DType::U32, 2 * rows);
    }
    if setup.limits.head_features {
        buffer(names::FEATURES, DType::F32, examples * hidden);
        buffer(names::POOLED, DType::F32, examples * hidden);
    }
    if setup.limits.train.is_some() {
        buffer(names::NORMS, DType::F32, trained * PARTIALS);
        buffer(names::LATCH, DType::F32, 1);
        buffer(names::LOSS_SUM, DType::F32, 1);
        if setup.shares_gradients() {
            buffer(names::LOSS_INCOMING, DType::F32, 1);
        }
    }
}

/// The memory that a session will allocate.
#[derive(Clone, Debug)]
pub struct SessionMemory {
    /// Bytes by kind.
    pub memory: BTreeMap<MemoryKind, u64>,
    /// Bytes of each segment of the arena.
    pub arena: Vec<usize>,
    pub largest: LargestBuffer,
    /// A kernel that would have to bind more than the device allows, and why.
    pub unbound: Option<String>,
    /// Whether the method has operations of its own.
    pub own_operations: bool,
}

/// The largest single buffer of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargestBuffer {
    /// The tensor's name, or that the buffer holds activations.
    pub name: String,
    pub bytes: u64,
}

impl SessionMemory {
    pub fn total(&self) -> u64 {
        self.memory.values().sum()
    }

    /// Whether the device has enough memory, large enough buffers, and kernels that can bind what they need.
    pub fn fits(&self, device: &DeviceInfo) -> bool {
        let memory = device.memory.is_none_or(|memory| self.total() <= memory);
        memory && self.largest.bytes <= device.max_buffer && self.unbound.is_none()
    }
}

/// Computes what [`crate::Session::open`] will allocate, from shapes alone.
pub fn plan_memory(setup: &Setup, device: &DeviceInfo) -> Result<SessionMemory> {
    let mut memory: BTreeMap<MemoryKind, u64> = BTreeMap::new();
    let mut largest = LargestBuffer::default();
    for tensor in tensors(setup) {
        let bytes = tensor.bytes();
        *memory.entry(tensor.kind).or_default() += bytes;
        if bytes > largest.bytes {
            largest = LargestBuffer { name: tensor.name, bytes };
        }
    }
    let (mut arena, mut unbound, mut own_operations) = (Vec::new(), None, false);
    for purpose in largest_purposes(setup) {
        let graph = setup.graphs().build(purpose)?;
        own_operations |= check_own(setup, &graph)?;
        let plan = device.plan(&graph);
        make_room(&mut arena, &plan);
        let checked = Bounds::of(device).map_or(Ok(()), |bounds| sparta_kernels::check(&plan, bounds));
        unbound = unbound.or(checked.err());
    }
    let segments = arena.iter().map(|bytes| bytes.next_multiple_of(4) as u64);
    memory.insert(MemoryKind::Activations, segments.clone().sum());
    let segment = segments.max().unwrap_or(0);
    if segment > largest.bytes {
        largest = LargestBuffer { name: "activations and scratch".into(), bytes: segment };
    }
    Ok(SessionMemory { memory, arena, largest, unbound, own_operations })
}

/// Whether a graph has operations of the method's own.
///
/// Errors: an operation with a kernel that no device can run, not just this one.
fn check_own(setup: &Setup, graph: &Graph) -> Result<bool> {
    let mut found = false;
    for node in graph.nodes() {
        let Op::Own(own) = &node.op else { continue };
        found = true;
        let operands = node.inputs.iter().chain(&node.outputs);
        let ranks = operands.map(|&v| Ok(graph.shape(v)?.len())).collect::<Result<Vec<_>>>()?;
        let method = &setup.adaptation.info.name;
        sparta_kernels::check_own(&own.0, &ranks).map_err(|e| Error::Method(format!("method `{method}`: {e}")))?;
    }
    Ok(found)
}

/// Errors: an operation of the session's plans that the device's backend does not have.
pub fn check_support(setup: &Setup, device: &dyn Backend) -> Result<()> {
    for purpose in largest_purposes(setup) {
        device.supports(&device.info().plan(&setup.graphs().build(purpose)?))?;
    }
    Ok(())
}

/// The plans of the largest batches.
fn largest_purposes(setup: &Setup) -> Vec<Purpose> {
    let SessionLimits { train, evaluate, head_features, batch, cache, .. } = setup.limits;
    let mut purposes = vec![Purpose::Evaluate(evaluate)];
    purposes.extend(cache.map(|cache| Purpose::Decode { rows: SessionLimits::DECODED, cache }));
    if head_features {
        purposes.extend([Purpose::Pool(evaluate), Purpose::HeadStep(batch), Purpose::HeadEvaluate(evaluate.examples)]);
    } else if let Some(size) = train {
        purposes.push(Purpose::Step(size));
        if setup.keeps_sums() {
            purposes.extend([Purpose::FirstMicroBatch(size), Purpose::MicroBatch(size), Purpose::Update]);
        }
        if setup.shares_gradients() {
            purposes.push(Purpose::Apart { size, first: true });
        }
        // The first group has the longest backward pass, and the largest one the most gradients.
        let groups = setup.whole_groups();
        let largest = (0..groups.len()).max_by_key(|&group| groups[group].len);
        for group in largest.into_iter().chain(largest.map(|_| 0)) {
            purposes.push(Purpose::WholeGradients { size, group, first: false });
        }
    }
    purposes
}

/// Writes the weights, the index sets with their base values, the initial values of new tensors and the rope tables.
///
/// Errors: a weight that is NaN or infinite; a device that fails.
pub fn upload(tensors: &mut DeviceTensors, weights: &dyn WeightSource, setup: &Setup) -> Result<()> {
    let adaptation = &setup.adaptation;
    for position in 0..adaptation.parameters.len() {
        upload_parameter(tensors, weights, setup, position)?;
    }
    for t in adaptation.trained().into_iter().chain(adaptation.constants()) {
        if let (Form::Extra(k), TrainMode::Reparam(extra)) = (t.form, &adaptation.modes[t.parameter]) {
            let values = match extra[k].init {
                Init::RowNorms => row_norms(weights, &adaptation.parameters[t.parameter])?,
                init => initial(setup.seed, &t.name, &t.shape, init),
            };
            tensors.write_f32(&t.name, &values)?;
        }
    }
    if setup.limits.train.is_some() {
        for bucket in setup.buckets() {
            tensors.write_u32(&bucket.table(), &bucket.ranges())?;
        }
    }
    write_ropes(tensors, setup)
}

/// Writes a weight as in the model, and its index set with the base values.
///
/// Errors: those of [`upload`].
pub(crate) fn upload_parameter(
    tensors: &mut DeviceTensors,
    weights: &dyn WeightSource,
    setup: &Setup,
    position: usize,
) -> Result<()> {
    let adaptation = &setup.adaptation;
    let (parameter, dtype) = (&adaptation.parameters[position], adaptation.device_dtype(position));
    let mut words = Vec::new();
    if weights.get(&parameter.name).is_none() {
        tensors.write_f32(&parameter.name, &new_head(weights, setup, parameter)?)?;
    } else if adaptation.blocks_of(position).is_some() {
        words = weights.finite_blocks(&parameter.name)?.into_owned();
        words.resize(words.len().next_multiple_of(4), 0);
        tensors.write(&parameter.name, &words)?;
    } else {
        // All bytes are read here anyway; later, a bad value that no batch has used yet would go unnoticed.
        let (stored, bytes) = weights.finite(&parameter.name)?;
        match stored == dtype {
            true => tensors.write(&parameter.name, &bytes)?,
            false => tensors.write_f32(&parameter.name, &as_f32(parameter, stored, &bytes)?)?,
        }
    }
    if let TrainMode::Sparse(set) = &adaptation.modes[position]
        && adaptation.sparse_size(position) > 0
    {
        if adaptation.scored().contains_key(&position) {
            let (method, name) = (&adaptation.info.name, &parameter.name);
            return Err(Error::Method(format!(
                "method `{method}` chooses elements of {name} by their scores, which only a run computes: see `run`"
            )));
        }
        tensors.write_u32(&index_name(&parameter.name), &set.indices)?;
        let view = weights.get(&parameter.name).ok_or_else(|| {
            Error::Method(format!("{} is new: it can be trained whole or not at all", parameter.name))
        })?;
        let view = match adaptation.blocks_of(position) {
            Some(blocks) => TensorView::stored(Storage::Blocks(blocks), view.shape, &words, Arrangement::None)
                .decoded_as(view.dtype),
            None => view,
        };
        let chosen = view.pick(&set.indices).ok_or_else(|| {
            Error::Weights(format!("{}: an index set points beyond {:?}", parameter.name, view.shape))
        })?;
        let base = base_name(&parameter.name);
        match view.dtype == dtype {
            true => tensors.write(&base, &chosen)?,
            false => tensors.write_f32(&base, &as_f32(parameter, view.dtype, &chosen)?)?,
        }
        if let [rows, columns] = parameter.shape[..] {
            tensors.write_u32(&row_ptr_name(&parameter.name), &row_ptr(&set.indices, rows, columns))?;
            if adaptation.has_remainder(position) {
                let (order, column_ptr) = by_column(&set.indices, columns);
                tensors.write_u32(&order_name(&parameter.name), &order)?;
                tensors.write_u32(&column_ptr_name(&parameter.name), &column_ptr)?;
            }
        }
    }
    // The device has a copy now, and the file's pages would count as this process's memory.
    weights.forget(&parameter.name);
    Ok(())
}

/// Errors: more positions than a rotation can compute.
fn write_ropes(tensors: &mut DeviceTensors, setup: &Setup) -> Result<()> {
    let positions = setup.limits.positions;
    for (i, rope) in setup.decoder.ropes.iter().enumerate() {
        if let Some(most) = rope.positions().filter(|&most| most < positions) {
            return Err(Error::Data(format!(
                "there are texts of up to {positions} tokens, but with this model's longrope only up to {most} are \
                 supported, as longer ones use different angles: use shorter texts, or set --max-length {most}"
            )));
        }
        tensors.write_f32(&names::rope(i), &rope.table(positions))?;
    }
    Ok(())
}

/// Initial values of a head that the checkpoint lacks, `[classes, hidden]`.
fn new_head(weights: &dyn WeightSource, setup: &Setup, parameter: &Parameter) -> Result<Vec<f32>> {
    match &setup.head_init {
        HeadInit::Normal { std } => {
            Ok(initial(setup.seed, &parameter.name, &parameter.shape, Init::Normal { std: *std }))
        }
        HeadInit::VocabularyRows(rows) => vocabulary_rows(weights, setup.decoder.vocabulary_head(), rows),
    }
}

/// Rows of the vocabulary head `name`.
fn vocabulary_rows(weights: &dyn WeightSource, name: &str, rows: &[u32]) -> Result<Vec<f32>> {
    let error = |what: String| Error::Weights(format!("{}: {what}", weights.origin()));
    let head = weights.get(name).ok_or_else(|| {
        error(format!(
            "the words of the prompt need the vocabulary head {name}, which is missing; train without --instruct"
        ))
    })?;
    let width = head.shape.iter().skip(1).product::<usize>();
    let mut values = Vec::new();
    for &row in rows {
        let row = head.part_f32(row as usize * width..(row as usize + 1) * width);
        values.extend(row.ok_or_else(|| error(format!("{name} is {:?} and has no such row", head.shape)))?);
    }
    Ok(values)
}

/// The Euclidean norm of each row of a weight.
fn row_norms(weights: &dyn WeightSource, parameter: &Parameter) -> Result<Vec<f32>> {
    let (stored, bytes) = weights.finite(&parameter.name)?;
    let values = as_f32(parameter, stored, &bytes)?;
    let width: usize = parameter.shape.iter().skip(1).product();
    let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32;
    let norms = values.chunks(width.max(1)).map(norm).collect();
    weights.forget(&parameter.name);
    Ok(norms)
}

/// Initial values of a new tensor that do not depend on the model, a function of seed and name alone.
pub fn initial(seed: u64, name: &str, shape: &[usize], init: Init) -> Vec<f32> {
    let len = shape.iter().product();
    match init {
        Init::Zeros | Init::RowNorms => vec![0.0; len],
        Init::Constant { value } => vec![value as f32; len],
        Init::Uniform { bound } => philox::uniform(seed, name, len, bound),
        Init::Normal { std } => philox::normal(seed, name, len, std),
    }
}

fn as_f32(parameter: &Parameter, dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
    to_f32(dtype, bytes).ok_or_else(|| Error::Weights(format!("{} is stored as {dtype}", parameter.name)))
}

/// Where each row's elements start among ascending flat indices: `[rows + 1]`.
pub fn row_ptr(indices: &[u32], rows: usize, columns: usize) -> Vec<u32> {
    (0..=rows as u64).map(|r| indices.partition_point(|&i| u64::from(i) < r * columns as u64) as u32).collect()
}

/// The positions in `indices` sorted by column, and where each column's start among them: `[columns + 1]`.
fn by_column(indices: &[u32], columns: usize) -> (Vec<u32>, Vec<u32>) {
    let column = |i: &u32| *i as usize % columns;
    let mut starts = vec![0; columns + 1];
    indices.iter().for_each(|i| starts[column(i) + 1] += 1);
    (0..columns).for_each(|c| starts[c + 1] += starts[c]);
    let (mut next, mut order) = (starts.clone(), vec![0; indices.len()]);
    for (position, i) in (0..).zip(indices) {
        let at = &mut next[column(i)];
        order[*at as usize] = position;
        *at += 1;
    }
    (order, starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Matrices of three rows and two columns.
    struct Matrices(BTreeMap<&'static str, [f32; 6]>);

    impl WeightSource for Matrices {
        fn origin(&self) -> String {
            "memory".into()
        }

        fn names(&self) -> Vec<&str> {
            self.0.keys().copied().collect()
        }

        fn get(&self, name: &str) -> Option<TensorView<'_>> {
            let values = self.0.get(name)?;
            Some(TensorView::new(DType::F32, &[3, 2], bytemuck::cast_slice(values)))
        }
    }

    #[test]
    fn elements_are_found_by_column() {
        // Of three rows: (0, 1), (0, 3), (1, 1), (2, 0), (2, 1).
        let (order, starts) = by_column(&[1, 3, 5, 8, 9], 4);
        assert_eq!((&order[..], &starts[..]), (&[3, 0, 2, 4, 1][..], &[0, 1, 4, 4, 5][..]));
        assert_eq!(by_column(&[], 2), (vec![], vec![0; 3]));
    }

    #[test]
    fn a_head_can_begin_as_rows_of_the_vocabulary_head() {
        let mut weights = Matrices(BTreeMap::from([
            ("model.embed_tokens.weight", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            ("lm_head.weight", [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]),
        ]));
        assert_eq!(vocabulary_rows(&weights, "model.embed_tokens.weight", &[2, 0]).unwrap(), [4.0, 5.0, 0.0, 1.0]);
        assert_eq!(vocabulary_rows(&weights, "lm_head.weight", &[1]).unwrap(), [12.0, 13.0]);
        assert!(
            vocabulary_rows(&weights, "lm_head.weight", &[3])
                .unwrap_err()
                .to_string()
                .contains("lm_head.weight is [3, 2]")
        );
        weights.0.remove("lm_head.weight");
        let error = vocabulary_rows(&weights, "lm_head.weight", &[1]).unwrap_err().to_string();
        assert!(error.contains("lm_head.weight, which is missing"), "{error}");
    }
}
