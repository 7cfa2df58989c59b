//! Losses and their gradients, in shards of rows.

use super::{Lowering, lanes_for, rows, rows_of, vectors, width_of};
use sparta_graph::DType;

/// The constants of kernels with a workgroup for each row of logits, and what caps these.
fn of_logits(classes: usize, soft_cap: Option<f32>) -> ([(&'static str, u32); 3], u32) {
    let vectors = vectors(classes, &[DType::F32]);
    let lanes = lanes_for(classes / vectors.max(1));
    let constants = [("LANES", lanes), ("CAP", u32::from(soft_cap.is_some())), ("VECTORS", vectors as u32)];
    (constants, soft_cap.unwrap_or(1.0).to_bits())
}

impl Lowering<'_> {
    pub(super) fn cross_entropy(&mut self, soft_cap: Option<f32>) -> Result<(), String> {
        let (logits, labels) = (self.input(0)?, self.input(1)?);
        let step = self.whole(self.input(2)?, "step")?;
        let (loss, lse) = (self.whole(self.output(0)?, "loss")?, self.output(1)?);
        let total = rows_of(logits);
        let losses = self.scratch(total, "the losses of the rows")?;
        let (constants, cap) = of_logits(width_of(logits), soft_cap);
        for shard in self.row_shards(&[logits, labels, lse])? {
            let mut part = losses;
            part.offset += 4 * shard.start;
            part.bytes = 4 * shard.len().max(1);
            let params = [shard.len() as u32, width_of(logits) as u32, cap];
            let bindings = [rows(logits, &shard), rows(labels, &shard), rows(lse, &shard), part];
            self.push("cross_entropy", &constants, &params, &bindings).groups(shard.len());
        }
        self.push("loss_sum", &[], &[total as u32], &[losses, step, loss]).groups(1);
        Ok(())
    }

    pub(super) fn cross_entropy_grad(&mut self, soft_cap: Option<f32>) -> Result<(), String> {
        let (logits, labels, lse, dx) = (self.input(0)?, self.input(1)?, self.input(2)?, self.output(0)?);
        let step = self.whole(self.input(3)?, "step")?;
        let d_loss = self.whole(self.input(4)?, "d_loss")?;
        let (constants, cap) = of_logits(width_of(logits), soft_cap);
        for shard in self.row_shards(&[logits, labels, lse, dx])? {
            let params = [shard.len() as u32, width_of(logits) as u32, cap];
            let bindings =
                [rows(logits, &shard), rows(labels, &shard), rows(lse, &shard), step, d_loss, rows(dx, &shard)];
            self.push("cross_entropy_grad", &constants, &params, &bindings).groups(shard.len());
        }
        Ok(())
    }

    /// A loss that is a sum over elements: one workgroup per row, and another one for the sum of the rows.
    pub(super) fn element_loss(&mut self, name: &'static str) -> Result<(), String> {
        let (x, labels) = (self.input(0)?, self.input(1)?);
        let step = self.whole(self.input(2)?, "step")?;
        let loss = self.whole(self.output(0)?, "loss")?;
        let total = rows_of(x);
        let losses = self.scratch(total, "the losses of the rows")?;
        let constants = [("LANES", lanes_for(width_of(x)))];
        for shard in self.row_shards(&[x, labels])? {
            let mut part = losses;
            part.offset += 4 * shard.start;
            part.bytes = 4 * shard.len().max(1);
            let params = [shard.len() as u32, width_of(x) as u32];
            self.push(name, &constants, &params, &[rows(x, &shard), rows(labels, &shard), part]).groups(shard.len());
        }
        self.push("loss_sum", &[], &[total as u32], &[losses, step, loss]).groups(1);
        Ok(())
    }

    pub(super) fn element_loss_grad(&mut self, name: &'static str) -> Result<(), String> {
        let (x, labels, dx) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let step = self.whole(self.input(2)?, "step")?;
        let d_loss = self.whole(self.input(3)?, "d_loss")?;
        for shard in self.row_shards(&[x, labels, dx])? {
            let n = shard.len() * width_of(x);
            let bindings = [rows(x, &shard), rows(labels, &shard), step, d_loss, rows(dx, &shard)];
            self.push(name, &[], &[n as u32], &bindings).threads(n);
        }
        Ok(())
    }
}
