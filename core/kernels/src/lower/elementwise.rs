//! Ops that work on each element alone, in shards of the flattened tensors.

use super::{Lowering, Step, code, dropout_threshold, elements, rows, steps, vectors, view, width_of};
use sparta_graph::ops::{Activation, Broadcasting, Dropout, Function};
use sparta_graph::{DType, Operand};

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
        let all: Vec<DType> = operands.iter().map(|operand| operand.ty.dtype).collect();
        for shard in self.element_shards(&operands)? {
            let bindings: Vec<_> = operands.iter().map(|o| elements(o, &shard)).collect();
            let mut params = vec![shard.len() as u32];
            params.extend(attributes.iter().map(|x| x.to_bits()));
            let elements = (shard.len(), vectors(shard.len(), &all), y);
            self.push_elements(name, &[&types, constants].concat(), elements, &params, &bindings);
        }
        Ok(())
    }

    /// An op of two operands, of which the second may be a row or a column.
    pub(super) fn binary(&mut self, name: &'static str) -> Result<(), String> {
        let (a, b, c) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let kind = Broadcasting::of(&a.ty, &b.ty)?;
        let types = [("A", code(a.ty.dtype)), ("B", code(b.ty.dtype)), ("Y", code(c.ty.dtype))];
        let constants = [&types[..], &[("BROADCAST", kind as u32)]].concat();
        let (all, y) = ([a, b, c].map(|t| t.ty.dtype), c.ty.dtype);
        if kind == Broadcasting::None {
            for shard in self.element_shards(&[a, b, c])? {
                let bindings = [a, b, c].map(|t| elements(t, &shard));
                let elements = (shard.len(), vectors(shard.len(), &all), y);
                self.push_elements(name, &constants, elements, &[shard.len() as u32, 0], &bindings);
            }
            return Ok(());
        }
        let (row, width) = (kind == Broadcasting::Row, width_of(a));
        let repeated = if row { Some(self.whole(b, "b")?) } else { None };
        let operands = if row { vec![a, c] } else { vec![a, b, c] };
        for shard in self.row_shards(&operands)? {
            let n = shard.len() * width;
            let bindings = [rows(a, &shard), repeated.unwrap_or_else(|| rows(b, &shard)), rows(c, &shard)];
            self.push_elements(name, &constants, (n, vectors(width, &all), y), &[n as u32, width as u32], &bindings);
        }
        Ok(())
    }

    pub(super) fn map_grad(&mut self, function: Function) -> Result<(), String> {
        let (x, dy, dx) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let types = [("X", code(x.ty.dtype)), ("DY", code(dy.ty.dtype)), ("Y", code(dx.ty.dtype))];
        let constants = [&types[..], &[("FUNCTION", function as u32)]].concat();
        for shard in self.element_shards(&[x, dy, dx])? {
            let bindings = [x, dy, dx].map(|t| elements(t, &shard));
            let vectors = vectors(shard.len(), &[x, dy, dx].map(|t| t.ty.dtype));
            let elements = (shard.len(), vectors, dx.ty.dtype);
            self.push_elements("map_grad", &constants, elements, &[shard.len() as u32], &bindings);
        }
        Ok(())
    }

    pub(super) fn scale_by(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let factor = self.whole(self.input(1)?, "s")?;
        let types = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
        for shard in self.element_shards(&[x, y])? {
            let bindings = [elements(x, &shard), factor, elements(y, &shard)];
            let elements = (shard.len(), vectors(shard.len(), &[x.ty.dtype, y.ty.dtype]), y.ty.dtype);
            self.push_elements("scale_by", &types, elements, &[shard.len() as u32], &bindings);
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
            let (n, dtype) = (shard.len(), x.ty.dtype);
            let vectors = vectors(n, &[dtype]);
            // Shards start at a multiple of 256 bytes, so at the first lane of a counter.
            let counter = (shard.start / 4) as u32;
            let params = [n as u32, counter, op.salt, dropout_threshold(op.p), keep.to_bits()];
            let bindings = [elements(x, &shard), elements(y, &shard)];
            let constants = [("X", code(dtype)), ("VECTORS", vectors as u32)];
            self.push("dropout", &constants, &params, &bindings).rng(rng).threads(steps(n, vectors, dtype));
        }
        Ok(())
    }

    pub(super) fn cast(&mut self, x: &Operand, y: &Operand) -> Result<(), String> {
        let constants = [("X", code(x.ty.dtype)), ("Y", code(y.ty.dtype))];
        for shard in self.element_shards(&[x, y])? {
            let bindings = [elements(x, &shard), elements(y, &shard)];
            let elements = (shard.len(), vectors(shard.len(), &[x.ty.dtype, y.ty.dtype]), y.ty.dtype);
            self.push_elements("cast", &constants, elements, &[shard.len() as u32], &bindings);
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
