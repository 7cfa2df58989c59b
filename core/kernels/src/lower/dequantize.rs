//! Weights that are stored in blocks.

use super::{Lowering, UNUSED, code, row_bytes, rows, view};
use sparta_graph::ops::Dequantize;

impl Lowering<'_> {
    pub(super) fn dequantize(&mut self, op: &Dequantize) -> Result<(), String> {
        let (blocks, y) = (self.input(0)?, self.output(0)?);
        let stored = op.blocks.bytes_of(op.columns).ok_or("its rows are not whole blocks")?;
        let bytes = op.blocks.bytes();
        let constants = [
            ("FORMAT", op.blocks as u32),
            ("BYTES", bytes as u32),
            ("Y", code(y.ty.dtype)),
            ("LOOKUP", u32::from(op.lookup)),
        ];
        let fours = op.columns / 4;
        if op.lookup {
            let tokens = self.input(1)?;
            for shard in self.row_shards(&[tokens, y])? {
                for part in self.shards(op.rows, &[stored])? {
                    let n = shard.len() * fours;
                    let params = [n, fours, part.start, part.end].map(|x| x as u32);
                    let part = view(blocks, part.start * stored, part.end * stored);
                    self.push("dequantize", &constants, &params, &[part, rows(tokens, &shard), rows(y, &shard)])
                        .threads(n);
                }
            }
            return Ok(());
        }
        for shard in self.shards(op.rows, &[stored, row_bytes(y)])? {
            let n = shard.len() * fours;
            let params = [n, fours, shard.start, shard.end].map(|x| x as u32);
            let part = view(blocks, shard.start * stored, shard.end * stored);
            self.push("dequantize", &constants, &params, &[part, UNUSED, rows(y, &shard)]).threads(n);
        }
        if op.overlay { self.overlay(y, None) } else { Ok(()) }
    }
}
