//! Ops that work on each element alone, in shards of the flattened tensors.

use super::{Lowering, Step, code, dropout_threshold, elements, rows, view, width_of};
use sparta_graph::ops::{Activation, Adam, Dropout};
use sparta_graph::{DType, Operand};

impl Lowering<'_> {
    /// A kernel that binds all operands, inputs before outputs, and takes `n` and `attributes`.
    pub(super) fn elementwise(
        &mut self,
        name: &'static str,
        constants: &[(&'static str, u32)],
        attributes: &[f32],
    ) -> Result<(), String> {
        let operands: Vec<&Operand> = self.call.inputs.iter().chain(&self.call.outputs).collect();
        for shard in self.element_shards(&operands)? {
            let bindings: Vec<_> = operands.iter().map(|o| elements(o, &shard)).collect();
            let mut params = vec![shard.len() as u32];
            params.extend(attributes.iter().map(|x| x.to_bits()));
            self.push(name, constants, &params, &bindings).threads(shard.len());
        }
        Ok(())
    }

    pub(super) fn add(&mut self) -> Result<(), String> {
        let (a, b, c) = (self.input(0)?, self.input(1)?, self.output(0)?);
        if a.ty.shape == b.ty.shape {
            for shard in self.element_shards(&[a, b, c])? {
                let bindings = [a, b, c].map(|t| elements(t, &shard));
                let params = [shard.len() as u32, 0];
                self.push("add", &[("B", code(DType::F32)), ("BIAS", 0)], &params, &bindings).threads(shard.len());
            }
            return Ok(());
        }
        let bias = self.whole(b, "b")?;
        let width = width_of(a);
        for shard in self.row_shards(&[a, c])? {
            let n = shard.len() * width;
            let constants = [("B", code(b.ty.dtype)), ("BIAS", 1)];
            let bindings = [rows(a, &shard), bias, rows(c, &shard)];
            self.push("add", &constants, &[n as u32, width as u32], &bindings).threads(n);
        }
        Ok(())
    }

    pub(super) fn scale_by(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let factor = self.whole(self.input(1)?, "s")?;
        for shard in self.element_shards(&[x, y])? {
            let bindings = [elements(x, &shard), factor, elements(y, &shard)];
            self.push("scale_by", &[], &[shard.len() as u32], &bindings).threads(shard.len());
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
            // Shards start at a multiple of 64 elements, so at the first lane of a counter.
            let counter = (shard.start / 4) as u32;
            let params = [n as u32, shard.len() as u32, counter, op.salt, dropout_threshold(op.p), keep.to_bits()];
            let bindings = [elements(x, &shard), elements(y, &shard)];
            self.push("dropout", &[], &params, &bindings).rng(rng).threads(n);
        }
        Ok(())
    }

    pub(super) fn adam(&mut self, op: &Adam) -> Result<(), String> {
        let tensors = [self.input(0)?, self.input(1)?, self.input(2)?, self.input(3)?];
        let clip = self.whole(self.input(4)?, "clip")?;
        let step = self.whole(self.input(5)?, "step")?;
        let attributes = [op.beta1, op.beta2, op.eps, op.weight_decay].map(f32::to_bits);
        for shard in self.element_shards(&tensors)? {
            let mut bindings = tensors.map(|t| elements(t, &shard)).to_vec();
            bindings.extend([clip, step]);
            let mut params = vec![shard.len() as u32];
            params.extend(attributes);
            self.push("adam", &[], &params, &bindings).threads(shard.len());
        }
        Ok(())
    }

    pub(super) fn cast(&mut self) -> Result<(), String> {
        let (x, y) = (self.input(0)?, self.output(0)?);
        let constants = [("FROM", code(x.ty.dtype)), ("TO", code(y.ty.dtype))];
        for shard in self.element_shards(&[x, y])? {
            let words = if y.ty.dtype == DType::F32 { shard.len() } else { shard.len().div_ceil(2) };
            let params = [words as u32, shard.len() as u32];
            self.push("cast", &constants, &params, &[elements(x, &shard), elements(y, &shard)]).threads(words);
        }
        Ok(())
    }

    pub(super) fn store(&mut self) -> Result<(), String> {
        let (to, from) = (self.input(0)?, self.input(1)?);
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
