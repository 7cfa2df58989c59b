//! Ops on chosen elements of a weight.

use super::{Lowering, code, elements, rows, rows_for_rounds, split, width_of, words};
use sparta_graph::ops::{SampledGrad, Sampling};

/// Above this share of chosen elements the dense product is cheaper: a dot product per element reads two numbers from
/// memory for each multiplication, a tile of registers reads one for eight.
const TILED_DENSITY: f64 = 1.0 / 32.0;
const TILE: usize = 64;

impl Lowering<'_> {
    pub(super) fn sampled_grad(&mut self, op: &SampledGrad) -> Result<(), String> {
        let (dy, x, index, g) = (self.input(0)?, self.input(1)?, self.input(2)?, self.output(0)?);
        let row_ptr = self.whole(self.input(3)?, "row_ptr")?;
        let (out, columns) = (width_of(dy), width_of(x));
        let density = index.ty.numel() as f64 / (out * columns).max(1) as f64;
        let tiled = match op.sampling {
            Sampling::Auto => density > TILED_DENSITY,
            Sampling::Sampled => false,
            Sampling::Tiled => true,
        };
        let types = [("DY", code(dy.ty.dtype)), ("X", code(x.ty.dtype))];
        for chosen in self.element_shards(&[index, g])? {
            let shards = self.row_shards(&[dy, x])?;
            for shard in shards.iter().flat_map(|shard| split(shard, rows_for_rounds(1))) {
                let (dy, x) = (rows(dy, &shard), rows(x, &shard));
                let (index, g) = (elements(index, &chosen), elements(g, &chosen));
                let (scale, accumulate) = (op.scale.to_bits(), u32::from(shard.start > 0));
                let sizes = [shard.len() as u32, out as u32, columns as u32];
                if tiled {
                    let mut params = sizes.to_vec();
                    params.extend([chosen.start as u32, chosen.end as u32, scale, accumulate]);
                    let tiles = if chosen.is_empty() { 0 } else { out.div_ceil(TILE) * columns.div_ceil(TILE) };
                    self.push("sampled_grad_tiled", &types, &params, &[dy, x, index, row_ptr, g]).groups(tiles);
                } else {
                    let mut params = vec![chosen.len() as u32];
                    params.extend(sizes);
                    params.extend([scale, accumulate]);
                    self.push("sampled_grad", &types, &params, &[dy, x, index, g]).threads(chosen.len());
                }
            }
        }
        Ok(())
    }

    pub(super) fn gather(&mut self) -> Result<(), String> {
        let (x, index, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let types = [("X", code(x.ty.dtype))];
        for part in self.element_shards(&[x])? {
            for chosen in self.element_shards(&[index, y])? {
                let params = [chosen.len() as u32, part.start as u32, part.end as u32];
                let bindings = [elements(x, &part), elements(index, &chosen), elements(y, &chosen)];
                self.push("gather", &types, &params, &bindings).threads(words(chosen.len(), y.ty.dtype));
            }
        }
        Ok(())
    }

    pub(super) fn scatter(&mut self) -> Result<(), String> {
        let (w, index, base, delta) = (self.input(0)?, self.input(1)?, self.input(2)?, self.input(3)?);
        let constants = [("W", code(w.ty.dtype)), ("BASE", code(base.ty.dtype))];
        for part in self.element_shards(&[w])? {
            for chosen in self.element_shards(&[index, base, delta])? {
                let params = [chosen.len() as u32, part.start as u32, part.end as u32];
                let chosen_views = [index, base, delta].map(|t| elements(t, &chosen));
                let bindings = [elements(w, &part), chosen_views[0], chosen_views[1], chosen_views[2]];
                self.push("scatter", &constants, &params, &bindings).threads(chosen.len());
            }
        }
        Ok(())
    }
}
