//! Ops that work on each element alone, in shards of the flattened tensors.

use super::{Lowering, Step, code, dropout_threshold, elements, rows, view, width_of, words};
use sparta_graph::Operand;
use sparta_graph::ops::{Activation, Dropout};

impl Lowering<'_> {
    /// A kernel that binds all operands, inputs before outputs, and takes `n` and `attributes`. X is the type of its
    /// inputs, Y that of what it writes.
    pub(super) fn elementwise(
        &mut self,
        name: &'static str,
        constants: &[(&'static str, u32)],
        attributes: &[f32],
    ) -> Result<(), String> {
        let operands: Vec<&Operand> = self.call.inputs.iter().chain(&self.call.outputs).collect();
        let y = self.call.outputs.first().or(self.call.inputs.first()).ok_or("expected an operand")?.ty.dtype;
        let x = self.call.inputs.last().map_or(y, |x| x.ty.dtype);
        let types = [("X", code(x)), ("Y", code(y))];
        for shard in self.element_shards(&operands)? {
            let bindings: Vec<_> = operands.iter().map(|o| elements(o, &shard)).collect();
            let mut params = vec![shard.len() as u32];
            params.extend(attributes.iter().map(|x| x.to_bits()));
            let threads = words(shard.len(), y);
            self.push(name, &[&types, constants].concat(), &params, &bindings).threads(threads);
        }
        Ok(())
    }

    pub(super) fn add(&mut self) -> Result<(), String> {
        let (a, b, c) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let types = [("A", code(a.ty.dtype)), ("B", code(b.ty.dtype)), ("Y", code(c.ty.dtype))];
        if a.ty.shape == b.ty.shape {
            let constants = [&types[..], &[("BIAS", 0)]].concat();
            for shard in self.element_shards(&[a, b, c])? {
                let bindings = [a, b, c].map(|t| elements(t, &shard));
                let threads = words(shard.len(), c.ty.dtype);
                self.push("add", &constants, &[shard.len() as u32, 0], &bindings).threads(threads);
            }
            return Ok(());
        }
        let constants = [&types[..], &[("BIAS", 1)]].concat();
        let bias = self.whole(b, "b")?;
        let width = width_of(a);
        for shard in self.row_shards(&[a, c])? {
            let n = shard.len() * width;
            let bindings = [rows(a, &shard), bias, rows(c, &shard)];
            let threads = words(n, c.ty.dtype);
            self.push("add", &constants, &[n as u32, width as u32], &bindings).threads(threads);
        }
        Ok(())
    }

    pub(super) fn scale_by(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let factor = self.whole(self.input(1)?, "s")?;
        let types = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
        for shard in self.element_shards(&[x, y])? {
            let bindings = [elements(x, &shard), factor, elements(y, &shard)];
            let threads = words(shard.len(), y.ty.dtype);
            self.push("scale_by", &types, &[shard.len() as u32], &bindings).threads(threads);
        }
        Ok(())
    }

    pub(super) fn gated_act(&mut self, act: Activation) -> Result<(), String> {
        self.elementwise("gated_act", &[activation(act)], &[])
    }

    pub(super) fn gated_act_grad(&mut self, act: Activation) -> Result<(), String> {
        self.elementwise("gated_act_grad", &[activation(act)], &[])
    }

    pub(super) fn fill(&mut self, value: f32) -> Result<(), String> {
        self.elementwise("fill", &[], &[value])
    }

    pub(super) fn dropout(&mut self, op: &Dropout) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let rng = self.whole(self.input(1)?, "rng")?;
        let keep = (1.0 / (1.0 - f64::from(op.p))) as f32;
        for shard in self.element_shards(&[x, y])? {
            let n = shard.len().div_ceil(4);
            // Shards start at a multiple of 256 bytes, so at the first lane of a counter.
            let counter = (shard.start / 4) as u32;
            let params = [n as u32, shard.len() as u32, counter, op.salt, dropout_threshold(op.p), keep.to_bits()];
            let bindings = [elements(x, &shard), elements(y, &shard)];
            self.push("dropout", &[("X", code(x.ty.dtype))], &params, &bindings).rng(rng).threads(n);
        }
        Ok(())
    }

    pub(super) fn cast(&mut self, x: &Operand, y: &Operand) -> Result<(), String> {
        let constants = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
        for shard in self.element_shards(&[x, y])? {
            let bindings = [elements(x, &shard), elements(y, &shard)];
            let threads = words(shard.len(), y.ty.dtype);
            self.push("cast", &constants, &[shard.len() as u32], &bindings).threads(threads);
        }
        Ok(())
    }

    pub(super) fn store(&mut self) -> Result<(), String> {
        let (to, from) = (self.input(0)?, self.input(1)?);
        if to.ty.dtype != from.ty.dtype {
            return self.cast(from, to);
        }
        let bytes = from.ty.bytes();
        if bytes > 0 {
            self.steps.push(Step::Copy { from: view(from, 0, bytes), to: view(to, 0, bytes) });
        }
        Ok(())
    }
}

fn activation(act: Activation) -> (&'static str, u32) {
    ("ACTIVATION", u32::from(act == Activation::GeluTanh))
}
