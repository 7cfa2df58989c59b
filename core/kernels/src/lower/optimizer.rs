//! Joining and measuring gradients, and updating trained values.

use super::{Lowering, UNUSED, code, elements, row_bytes, split, steps, vectors, view};
use sparta_graph::ops::{Adam, AdamBf16, ClipCoef, Concat, PARTIALS, Sgd, SumOfSquares};
use sparta_graph::{DType, Operand};
use std::ops::Range;

/// Gaps that one launch of `concat` fills: their ends are among its parameters.
const GAPS: usize = 56;
/// Lanes of a workgroup that fills one gap; no gap is longer.
const GAP_LANES: u32 = 64;
/// Tensors that one launch of `sum_of_squares` measures: the workgroups of more would need two dimensions, and this
/// kernel does not skip those beyond the end.
const MEASURED: usize = 65_535 / PARTIALS;

impl Lowering<'_> {
    /// Copies the inputs that the planner has not placed inside the output, and fills the gaps.
    pub(super) fn concat(&mut self) -> Result<(), String> {
        let y = self.output(0)?;
        let inputs: Vec<&Operand> = self.call.inputs.iter().collect();
        let (begins, _) = Concat::layout(inputs.iter().map(|x| x.ty.numel()));
        for (&x, &begin) in inputs.iter().zip(&begins) {
            let n = x.ty.numel();
            if n == 0 || view(x, 0, 4 * n) == view(y, 4 * begin, 4 * (begin + n)) {
                continue;
            }
            for shard in self.element_shards(&[x])? {
                let to = begin + shard.start..begin + shard.end;
                let constants = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
                let bindings = [elements(x, &shard), elements(y, &to)];
                let vectors = vectors(shard.len(), &[x.ty.dtype, y.ty.dtype]);
                let n = (shard.len(), vectors, y.ty.dtype);
                self.push_elements("cast", &constants, n, &[shard.len() as u32], &bindings);
            }
        }
        let ends = inputs.iter().zip(&begins).map(|(x, begin)| begin + x.ty.numel());
        let gaps: Vec<usize> = ends.filter(|end| !end.is_multiple_of(GAP_LANES as usize)).collect();
        for shard in self.element_shards(&[y])? {
            let inside: Vec<u32> = gaps.iter().filter(|end| shard.contains(end)).map(|&end| end as u32).collect();
            for ends in inside.chunks(GAPS) {
                let mut params = vec![shard.start as u32, 0, 0, 0];
                params.extend(ends);
                params.resize(4 + GAPS, 0);
                self.push("concat", &[("LANES", GAP_LANES)], &params, &[elements(y, &shard)]).groups(ends.len());
            }
        }
        Ok(())
    }

    pub(super) fn adam(&mut self, op: &Adam) -> Result<(), String> {
        let tensors = [self.input(0)?, self.input(1)?, self.input(2)?, self.input(3)?];
        let small = [self.whole(self.input(4)?, "clip")?, self.whole(self.input(5)?, "step")?];
        for shard in self.element_shards(&tensors)? {
            let mut bindings = tensors.map(|t| elements(t, &shard)).to_vec();
            bindings.extend(small);
            let mut params = vec![shard.len() as u32];
            params.extend(adam_attributes(op));
            let n = (shard.len(), vectors(shard.len(), &[DType::F32]), DType::F32);
            self.push_elements("adam", &[], n, &params, &bindings);
        }
        Ok(())
    }

    pub(super) fn adam_bf16(&mut self, op: &AdamBf16) -> Result<(), String> {
        let tensors = [self.input(0)?, self.input(1)?, self.input(2)?, self.input(3)?];
        let small = [self.whole(self.input(4)?, "clip")?, self.whole(self.input(5)?, "step")?];
        let rng = self.whole(self.input(6)?, "rng")?;
        for shard in self.element_shards(&tensors)? {
            let mut bindings = tensors.map(|t| elements(t, &shard)).to_vec();
            bindings.extend(small);
            // Shards start at a multiple of 64 elements, so at the first lane of a counter.
            let mut params = vec![shard.len() as u32, (shard.start / 4) as u32, op.salt];
            params.extend(adam_attributes(&op.adam));
            let vectors = vectors(shard.len(), &[DType::BF16]);
            let threads = steps(shard.len(), vectors, DType::BF16);
            self.push("adam_bf16", &[("VECTORS", vectors as u32)], &params, &bindings).rng(rng).threads(threads);
        }
        Ok(())
    }

    pub(super) fn sgd(&mut self, op: &Sgd) -> Result<(), String> {
        let (p, grad, state) = (self.input(0)?, self.input(1)?, self.call.inputs.get(4));
        let small = [self.whole(self.input(2)?, "clip")?, self.whole(self.input(3)?, "step")?];
        let attributes = [op.momentum, op.weight_decay, op.lr_factor].map(f32::to_bits);
        for shard in self.element_shards(&[p])? {
            let state = state.map_or(UNUSED, |b| elements(b, &shard));
            let bindings = [elements(p, &shard), elements(grad, &shard), small[0], small[1], state];
            let mut params = vec![shard.len() as u32];
            params.extend(attributes);
            let constants = [("STATE", u32::from(op.momentum != 0.0))];
            let n = (shard.len(), vectors(shard.len(), &[DType::F32]), DType::F32);
            self.push_elements("sgd", &constants, n, &params, &bindings);
        }
        Ok(())
    }

    pub(super) fn sum_of_squares(&mut self, op: &SumOfSquares) -> Result<(), String> {
        let (norms, x, parts) = (self.input(0)?, self.input(1)?, self.call.inputs.get(2));
        let count = parts.map_or(1, |parts| parts.ty.shape[0]);
        let table = parts.map_or(Ok(UNUSED), |parts| self.whole(parts, "parts"))?;
        for shard in self.element_shards(&[x])? {
            let vectors = vectors(shard.len(), &[x.ty.dtype]) as u32;
            let constants = [("X", code(x.ty.dtype)), ("PARTS", u32::from(parts.is_some())), ("VECTORS", vectors)];
            // Rows of 256 bytes: any of them can begin a binding.
            for rows in split(&(0..count), (self.bounds.binding / row_bytes(norms)).clamp(1, MEASURED)) {
                let slots = op.slot + rows.start..op.slot + rows.end;
                let partials = view(norms, slots.start * row_bytes(norms), slots.end * row_bytes(norms));
                let Range { start, end } = shard;
                let params = [start, end, usize::from(start > 0), rows.start, x.ty.numel()].map(|x| x as u32);
                let bindings = [partials, elements(x, &shard), table];
                self.push("sum_of_squares", &constants, &params, &bindings).groups(rows.len() * PARTIALS);
            }
        }
        Ok(())
    }

    pub(super) fn clip_coef(&mut self, op: &ClipCoef) -> Result<(), String> {
        let norms = self.input(0)?;
        let partials = norms.ty.numel() as u32;
        let limit = op.max_norm.unwrap_or(0.0).to_bits();
        let params = [partials, limit, u32::from(op.max_norm.is_some())];
        let bindings = [
            self.whole(norms, "norms")?,
            self.whole(self.input(1)?, "loss")?,
            self.whole(self.input(2)?, "latch")?,
            self.whole(self.output(0)?, "clip")?,
        ];
        self.push("clip_coef", &[], &params, &bindings).groups(1);
        Ok(())
    }
}

fn adam_attributes(op: &Adam) -> [u32; 5] {
    [op.beta1, op.beta2, op.eps, op.weight_decay, op.lr_factor].map(f32::to_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{Bounds, Step, lower};
    use sparta_graph::graph::TensorType;
    use sparta_graph::{Call, DeviceKind, Place};

    #[test]
    fn many_tensors_are_measured_by_launches_of_one_dimension() {
        const TENSORS: usize = 3000;
        let types = [
            TensorType::f32([TENSORS, PARTIALS]),
            TensorType::f32([8 * TENSORS]),
            TensorType::new(DType::U32, [TENSORS, 2]),
        ];
        let operand = |(i, ty)| Operand { place: Place::External(i), ty };
        let inputs = types.into_iter().enumerate().map(operand).collect();
        let call = Call { op: SumOfSquares { slot: 0 }.into(), inputs, outputs: vec![], label: String::new() };
        let mut row = 0;
        for step in lower(&call, Bounds::new(DeviceKind::Other, 1 << 27)).unwrap().steps {
            let Step::Dispatch(dispatch) = step else { panic!("a copy") };
            assert_eq!((dispatch.grid(65_535).1, dispatch.params[3] as usize), (1, row));
            row += dispatch.groups / PARTIALS;
        }
        assert_eq!(row, TENSORS);
    }
}
