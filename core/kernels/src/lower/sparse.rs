//! Ops on chosen elements of a weight.

use super::product::{Epilogue, Factor, Product};
use super::{Lowering, View, code, elements, rows, rows_for_rounds, split, width_of, words};
use sparta_graph::ops::{Layout, SampledGrad, Sampling};

/// Above this share of chosen elements the dense product is cheaper: a dot product per element reads two numbers from
/// memory for each multiplication, a tile of registers reads one for eight.
const TILED_DENSITY: f64 = 1.0 / 32.0;

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
        for chosen in self.element_shards(&[index, g])?.into_iter().filter(|chosen| !chosen.is_empty()) {
            let shards = self.row_shards(&[dy, x])?;
            let most = if tiled { self.rows_for_flops(2 * out * columns) } else { rows_for_rounds(1) };
            for shard in shards.iter().flat_map(|shard| split(shard, most)) {
                let epilogue = Epilogue {
                    c_stride: columns,
                    scale: op.scale,
                    accumulate: shard.start > 0,
                    chosen: (chosen.start, chosen.end),
                    ..Epilogue::default()
                };
                let (index, g) = (elements(index, &chosen), elements(g, &chosen));
                if tiled {
                    let product = Product {
                        layout: Layout::Tn,
                        a: Factor::all_columns(dy, &shard),
                        b: Factor::all_columns(x, &shard),
                        m: out,
                        n: columns,
                        k: shard.len(),
                    };
                    self.sampled_tiles(&product, &epilogue, [index, row_ptr, g])?;
                } else {
                    let types = [("DY", code(dy.ty.dtype)), ("X", code(x.ty.dtype))];
                    let sizes = [chosen.len(), shard.len(), out, columns].map(|x| x as u32);
                    let params = [&sizes[..], &[op.scale.to_bits(), u32::from(epilogue.accumulate)]].concat();
                    let bindings = [rows(dy, &shard), rows(x, &shard), index, g];
                    self.push("sampled_grad", &types, &params, &bindings).threads(chosen.len());
                }
            }
        }
        Ok(())
    }

    /// The chosen elements of a product that is made in tiles. Bindings: index, row_ptr, g.
    fn sampled_tiles(
        &mut self,
        product: &Product,
        epilogue: &Epilogue,
        [index, row_ptr, g]: [View; 3],
    ) -> Result<(), String> {
        let tiling = self.tiling(product);
        let params = Self::product_params(product, epilogue, &tiling);
        if tiling.pieces == 1 {
            self.push_tiles("sampled_grad_tiled", &[], product, (&tiling, &params), &[index, row_ptr, g]);
            return Ok(());
        }
        let partial = self.push_partial(product, &tiling, &params)?;
        let chosen = epilogue.chosen.1 - epilogue.chosen.0;
        self.push("sampled_grad_sum", &[], &params, &[partial, index, g]).threads(chosen);
        self.used = partial.offset;
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
        let constants = [("W", code(w.ty.dtype))];
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
