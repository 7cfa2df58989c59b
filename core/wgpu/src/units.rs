//! Tests a device's matrix units, which are used only if their results agree with f32.

use crate::WgpuBackend;
use sparta_graph::ops::{Attention, AttentionDelta, AttentionGrad, Cast, Layout, Linear, Store};
use sparta_graph::{Backend, BackendError, BufferId, DType, Graph, GraphError, Plan, Value};
use sparta_kernels::{MatrixUnits, sampled_cost};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The test's name in errors.
const TEST: &str = "the test of matrix units";
/// The most bytes that the test binds at once.
const BINDING: usize = 8 << 20;
/// m and n of the tested products, for small and for large tiles, but not whole numbers of tiles.
const SIZES: [[usize; 2]; 2] = [[72, 80], [1032, 1040]];
/// More than one tile.
const K: usize = 104;
const LAYOUTS: [Layout; 3] = [Layout::Nt, Layout::Nn, Layout::Tn];

/// The tested attention: longer than a tile, in two segments.
const ROWS: [u32; 2] = [150, 51];
const ATTENTION: Attention =
    Attention { heads: 4, kv_heads: 2, head_dim: 32, scale: 0.2, window: None, soft_cap: None, dropout: 0.0, salt: 0 };

/// What an adapter's matrix units are used for.
#[derive(Clone, Copy, Default)]
struct Tested {
    products: Option<MatrixUnits>,
    attention: bool,
}

/// The test results of this process by adapter.
static TESTED: Mutex<Option<HashMap<usize, Tested>>> = Mutex::new(None);

impl WgpuBackend {
    /// Enables the first candidate whose products agree with f32 (also for attention if that agrees, too), and notes
    /// this in the device's information.
    ///
    /// Errors: the device fails with kernels in f32.
    pub(crate) fn choose_units(&mut self, index: usize, candidates: &[MatrixUnits]) -> Result<(), BackendError> {
        if candidates.is_empty() {
            return Ok(());
        }
        let small = self.bounds.binding < BINDING;
        let mut tested = TESTED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tested.get_or_insert_default().get(&index).copied();
        let found = match known {
            Some(found) => found,
            None if small => Tested::default(),
            None => {
                let found = self.test(candidates)?;
                tested.get_or_insert_default().insert(index, found);
                found
            }
        };
        let chosen = found.products;
        self.bounds.units = chosen;
        self.bounds.attention_units = chosen.filter(|_| found.attention);
        self.bounds.sampled_cost = sampled_cost(self.adapter.info.kind, chosen.as_ref());
        self.adapter.info.sampled_cost = Some(self.bounds.sampled_cost);
        self.adapter.info.multiplier = Some(chosen.map_or("f32".into(), |units| units.to_string()));
        if chosen.is_none() {
            self.adapter.info.products.clear();
            self.adapter.info.driver += ", matrix units not in use: their products differ from those in f32";
        } else if !found.attention {
            self.adapter.info.driver += ", matrix units not in use for attention: it differs from that in f32";
        }
        Ok(())
    }

    fn test(&mut self, candidates: &[MatrixUnits]) -> Result<Tested, BackendError> {
        let failed = |e: GraphError| self.op(TEST, e.to_string());
        let (products, attention) = (products().map_err(failed)?, attention().map_err(failed)?);
        let products_of = |device: &mut Self, absolute| device.results(&products, |i| number(i, absolute));
        let (expected, magnitudes) = (products_of(self, false)?, products_of(self, true)?);
        let mut found = Tested::default();
        for &units in candidates {
            self.bounds.units = Some(units);
            let got = unless_lost(products_of(self, false));
            self.bounds.units = None;
            let agrees = |got: &Vec<f32>| {
                let each = expected.iter().zip(got).zip(&magnitudes);
                each.into_iter().all(|((e, g), sum)| (e - g).abs() <= rounding(*sum))
            };
            if got?.as_ref().is_some_and(agrees) {
                found.products = Some(units);
                break;
            }
        }
        if found.products.is_some() {
            let expected = self.results(&attention, unit_number)?;
            self.bounds.attention_units = found.products;
            let got = unless_lost(self.results(&attention, unit_number));
            self.bounds.attention_units = None;
            let close = |(e, g): (&f32, &f32)| (e - g).abs() <= e.abs() * 2f32.powi(-7) + 2f32.powi(-14);
            found.attention = got?.is_some_and(|got| expected.iter().zip(&got).all(close));
        }
        Ok(found)
    }

    /// Runs a graph on bf16 inputs with these elements, and spans of [`ROWS`]; returns its f32 outputs one after the
    /// other.
    fn results(&mut self, graph: &Graph, bf16: impl Fn(usize) -> u16) -> Result<Vec<f32>, BackendError> {
        let plan = Plan::build(graph, false);
        let mut buffers = Vec::new();
        let results = self.run_test(&plan, bf16, &mut buffers);
        buffers.into_iter().for_each(|buffer| self.free(buffer));
        results
    }

    fn run_test(
        &mut self,
        plan: &Plan,
        bf16: impl Fn(usize) -> u16,
        buffers: &mut Vec<BufferId>,
    ) -> Result<Vec<f32>, BackendError> {
        for external in &plan.externals {
            let elements = external.ty.numel();
            let buffer = self.alloc(external.ty.dtype, elements, TEST)?;
            buffers.push(buffer);
            match external.ty.dtype {
                DType::BF16 => {
                    let numbers: Vec<u8> = (0..elements).flat_map(|i| bf16(i).to_le_bytes()).collect();
                    self.write(buffer, 0, &numbers)?;
                }
                DType::U32 => self.write(buffer, 0, &spans())?,
                _ => {}
            }
        }
        let externals = buffers.clone();
        let arena = self.alloc(DType::F32, plan.arena / DType::F32.size(), TEST)?;
        buffers.push(arena);
        let id = self.prepare(plan, &[arena], &externals)?;
        let run = self.run(id);
        self.release(id);
        run?;
        let mut results = Vec::new();
        for (&buffer, external) in externals.iter().zip(&plan.externals).filter(|(_, e)| e.ty.dtype == DType::F32) {
            let mut bytes = vec![0; external.ty.bytes()];
            self.read(buffer, 0, &mut bytes)?;
            results.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)));
        }
        Ok(results)
    }
}

/// `None` if the driver cannot compile or run a kernel after all; the loss of the device stays an error.
fn unless_lost(results: Result<Vec<f32>, BackendError>) -> Result<Option<Vec<f32>>, BackendError> {
    match results {
        Err(error @ BackendError::DeviceLost { .. }) => Err(error),
        results => Ok(results.ok()),
    }
}

/// Products in all layouts and sizes.
fn products() -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    for (layout, [m, n]) in LAYOUTS.iter().flat_map(|&layout| SIZES.map(|size| (layout, size))) {
        let k = K;
        let (a, b) = match layout {
            Layout::Nt => ([m, k], [n, k]),
            Layout::Nn => ([m, k], [k, n]),
            Layout::Tn => ([k, m], [k, n]),
        };
        let operands = [("a", a), ("b", b)].map(|(name, shape)| graph.external(name, DType::BF16, shape));
        let c = graph.one(Linear { output: Some(DType::F32), ..Linear::plain(layout) }, &operands)?;
        store(&mut graph, c)?;
    }
    Ok(graph)
}

/// Attention and its gradients.
fn attention() -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let op = ATTENTION;
    let rows = ROWS.iter().sum::<u32>() as usize;
    let (wide, narrow) = ([rows, op.heads * op.head_dim], [rows, op.kv_heads * op.head_dim]);
    // The gradient gets a separate o: the forward pass rounds its own, which would amplify small differences.
    let shapes = [("q", wide), ("k", narrow), ("v", narrow), ("o", wide), ("do", wide)];
    let [q, k, v, o, d_o] = shapes.map(|(name, shape)| graph.external(name, DType::BF16, shape));
    let spans = graph.external("spans", DType::U32, [rows, 2]);
    let forward = graph.apply(op.clone().into(), &[q, k, v, spans])?;
    let delta = AttentionDelta { heads: op.heads, head_dim: op.head_dim };
    let ld = graph.one(delta, &[o, d_o, forward[1]])?;
    let gradients = graph.apply(AttentionGrad(op).into(), &[q, k, v, d_o, ld, spans])?;
    for value in forward.into_iter().chain(gradients) {
        let value = match graph.ty(value)?.dtype {
            DType::F32 => value,
            _ => graph.one(Cast { to: DType::F32 }, &[value])?,
        };
        store(&mut graph, value)?;
    }
    Ok(graph)
}

/// Keeps a value in an external tensor.
fn store(graph: &mut Graph, value: Value) -> Result<(), GraphError> {
    let ty = graph.ty(value)?.clone();
    let out = graph.external(format!("out{}", value.0), ty.dtype, ty.shape);
    graph.apply(Store {}.into(), &[out, value])?;
    Ok(())
}

/// The bytes of the spans of [`ROWS`].
fn spans() -> Vec<u8> {
    let ends = ROWS.iter().scan(0, |end, rows| {
        *end += rows;
        Some([*end - rows, *end])
    });
    let rows = ends.zip(ROWS).flat_map(|(span, rows)| std::iter::repeat_n(span, rows as usize));
    rows.flatten().flat_map(u32::to_le_bytes).collect()
}

/// How much two ways to add up k exact products may differ if their magnitudes add up to `sum`: a rounding to 2^-22 at
/// each step, as some matrix units have (f32 has 2^-24). Sums in f16 would differ by 2^-11.
fn rounding(sum: f32) -> f32 {
    K as f32 * sum * 2f32.powi(-22)
}

/// The bits of bf16 numbers of both signs over 12 binades.
fn number(i: usize, absolute: bool) -> u16 {
    let mixed = (i as u32).wrapping_mul(0x9e37_79b9) >> 16;
    let magnitude = (1.0 + (mixed % 128) as f32 / 128.0) * 2f32.powi((mixed / 128 % 12) as i32 - 20);
    let x = if absolute || mixed & 0x4000 == 0 { magnitude } else { -magnitude };
    // Its other bits are zero.
    (x.to_bits() >> 16) as u16
}

/// The bits of bf16 numbers between -2 and 2.
fn unit_number(i: usize) -> u16 {
    let mixed = (i as u32).wrapping_mul(0x9e37_79b9) >> 16;
    ((mixed as f32 / 2f32.powi(14) - 2.0).to_bits() >> 16) as u16
}
