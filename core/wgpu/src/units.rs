//! Matrix units are used where their products agree with those in f32.

use crate::WgpuBackend;
use sparta_graph::ops::{Layout, Linear, Store};
use sparta_graph::{Backend, BackendError, BufferId, DType, Graph, Plan};
use sparta_kernels::{MatrixUnits, sampled_cost};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Bytes that the test binds at once.
const BINDING: usize = 64 << 10;
/// m, n and k of the tested products: not whole tiles, and more than one tile of k.
const SIZE: [usize; 3] = [72, 80, 104];
const LAYOUTS: [Layout; 3] = [Layout::Nt, Layout::Nn, Layout::Tn];

/// What was found out about the adapters of this process.
static TESTED: Mutex<Option<HashMap<usize, Option<MatrixUnits>>>> = Mutex::new(None);

impl WgpuBackend {
    /// Turns on the first candidate whose products agree with those in f32, and says so in the device's information.
    ///
    /// Errors: the device fails with products in f32.
    pub(crate) fn choose_units(&mut self, index: usize, candidates: &[MatrixUnits]) -> Result<(), BackendError> {
        if candidates.is_empty() {
            return Ok(());
        }
        let small = self.bounds.binding < BINDING;
        let mut tested = TESTED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tested.get_or_insert_default().get(&index).copied();
        let chosen = match known {
            _ if small => None,
            Some(chosen) => chosen,
            None => self.test(candidates)?,
        };
        if !small {
            tested.get_or_insert_default().insert(index, chosen);
        }
        self.bounds.units = chosen;
        self.bounds.sampled_cost = sampled_cost(self.adapter.info.kind, chosen.as_ref());
        self.adapter.info.sampled_cost = Some(self.bounds.sampled_cost);
        self.adapter.info.multiplier = Some(chosen.map_or("f32".into(), |units| units.to_string()));
        if chosen.is_none() {
            self.adapter.info.products.clear();
            self.adapter.info.driver += ", matrix units not in use: their products differ from those in f32";
        }
        Ok(())
    }

    fn test(&mut self, candidates: &[MatrixUnits]) -> Result<Option<MatrixUnits>, BackendError> {
        let (expected, magnitudes) = (self.products()?, self.products_of(true)?);
        for &units in candidates {
            self.bounds.units = Some(units);
            // A driver that cannot compile or run a kernel does not offer what it says; a lost device is lost.
            let got = match self.products() {
                Err(error @ BackendError::DeviceLost { .. }) => return Err(error),
                got => got.ok(),
            };
            self.bounds.units = None;
            let agrees = |got: &Vec<f32>| {
                let each = expected.iter().zip(got).zip(&magnitudes);
                each.into_iter().all(|((e, g), sum)| (e - g).abs() <= rounding(*sum))
            };
            if got.as_ref().is_some_and(agrees) {
                return Ok(Some(units));
            }
        }
        Ok(None)
    }

    fn products(&mut self) -> Result<Vec<f32>, BackendError> {
        self.products_of(false)
    }

    /// The test's products in all layouts, one after the other; of the operands' magnitudes if `absolute`.
    fn products_of(&mut self, absolute: bool) -> Result<Vec<f32>, BackendError> {
        let [m, n, k] = SIZE;
        let mut graph = Graph::new();
        for layout in LAYOUTS {
            let (a, b) = match layout {
                Layout::Nt => ([m, k], [n, k]),
                Layout::Nn => ([m, k], [k, n]),
                Layout::Tn => ([k, m], [k, n]),
            };
            let operands = [("a", a), ("b", b)].map(|(name, shape)| graph.external(name, DType::BF16, shape));
            let out = graph.external("c", DType::F32, [m, n]);
            let op = Linear { output: Some(DType::F32), ..Linear::plain(layout) };
            let made = graph.one(op, &operands).and_then(|c| graph.apply(Store {}.into(), &[out, c]));
            made.map_err(|e| self.op("the test of matrix units", e.to_string()))?;
        }
        let plan = Plan::build(&graph, false);
        let mut buffers = Vec::new();
        let results = self.run_products(&plan, absolute, &mut buffers);
        buffers.into_iter().for_each(|buffer| self.free(buffer));
        results
    }

    fn run_products(
        &mut self,
        plan: &Plan,
        absolute: bool,
        buffers: &mut Vec<BufferId>,
    ) -> Result<Vec<f32>, BackendError> {
        for external in &plan.externals {
            let buffer = self.alloc(external.ty.dtype, external.ty.numel(), "the test of matrix units")?;
            buffers.push(buffer);
            if external.ty.dtype == DType::BF16 {
                let numbers = (0..external.ty.numel()).map(|i| number(i, absolute).to_le_bytes());
                self.write(buffer, 0, &numbers.flatten().collect::<Vec<u8>>())?;
            }
        }
        let externals = buffers.clone();
        let arena = self.alloc(DType::F32, plan.arena / DType::F32.size(), "the test of matrix units")?;
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

/// What two ways to add up k exact products may differ by, when their magnitudes add up to `sum`: a rounding to 2^-22 at
/// each step, as some matrix units have (f32 has 2^-24). Sums in f16 would differ by 2^-11.
fn rounding(sum: f32) -> f32 {
    SIZE[2] as f32 * sum * 2f32.powi(-22)
}

/// The bits of bf16 numbers of both signs over 12 binades.
fn number(i: usize, absolute: bool) -> u16 {
    let mixed = (i as u32).wrapping_mul(0x9e37_79b9) >> 16;
    let magnitude = (1.0 + (mixed % 128) as f32 / 128.0) * 2f32.powi((mixed / 128 % 12) as i32 - 20);
    let x = if absolute || mixed & 0x4000 == 0 { magnitude } else { -magnitude };
    // Its other bits are zero.
    (x.to_bits() >> 16) as u16
}
