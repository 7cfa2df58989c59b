//! Ops on chosen elements of a weight.

use super::choice::{Question, cost_of};
use super::product::{Epilogue, Factor, Product, multiplier};
use super::{Lowering, UNUSED, View, code, elements, rows, rows_for_rounds, rows_of, split, width_of, words};
use sparta_graph::ops::{Layout, SampledGrad, Sampling, Scatter, SparseLinear};
use sparta_graph::{Operand, SampledCost};
use std::ops::Range;

impl Lowering<'_> {
    pub(super) fn sampled_grad(&mut self, op: &SampledGrad) -> Result<(), String> {
        let (dy, x, index, g) = (self.input(0)?, self.input(1)?, self.input(2)?, self.output(0)?);
        let row_ptr = self.whole(self.input(3)?, "row_ptr")?;
        let (out, columns) = (width_of(dy), width_of(x));
        let tiled = match op.sampling {
            Sampling::Auto => {
                let whole = self.sampled_product(0..rows_of(dy))?;
                index.ty.numel() as u64 * u64::from(self.cost(&whole)) > (out * columns) as u64
            }
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
                    let product = self.sampled_product(shard)?;
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

    /// The cost of a multiplication in a dot product, relative to one in this dense product.
    fn cost(&mut self, dense: &Product) -> u32 {
        let on_units = self.units(dense).is_some();
        let SampledCost { f32, bf16 } = self.bounds.sampled_cost;
        let (types, flops) = ([dense.a.dtype, dense.b.dtype], self.bounds.flops);
        let name = || format!("sampled_grad {} {}*{}", multiplier(on_units), types[0], types[1]);
        let measured = self.chosen(name, |name| Question::cost(name, types, flops));
        measured.and_then(cost_of).unwrap_or(if on_units { bf16 } else { f32 })
    }

    /// The dense product over a range of rows of dy and x.
    fn sampled_product(&self, shard: Range<usize>) -> Result<Product, String> {
        let (dy, x) = (self.input(0)?, self.input(1)?);
        let [a, b] = [dy, x].map(|operand| Factor::all_columns(operand, &shard));
        Ok(Product { layout: Layout::Tn, a, b, m: width_of(dy), n: width_of(x), k: shard.len() })
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
            return self.push_tiles("sampled_grad_tiled", &[], product, (&tiling, &params), &[index, row_ptr, g]);
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

    pub(super) fn scatter(&mut self, op: &Scatter) -> Result<(), String> {
        let remainder = if op.remainder { Some(self.input(4)?) } else { None };
        self.overlay(self.input(0)?, remainder)
    }

    /// Writes `base + delta` to the chosen elements of w; index, base and delta are inputs 1 to 3.
    pub(super) fn overlay(&mut self, w: &Operand, remainder: Option<&Operand>) -> Result<(), String> {
        let (index, base, delta) = (self.input(1)?, self.input(2)?, self.input(3)?);
        let with_remainder = u32::from(remainder.is_some());
        let constants = [("W", code(w.ty.dtype)), ("BASE", code(base.ty.dtype)), ("REMAINDER", with_remainder)];
        for part in self.element_shards(&[w])? {
            for chosen in self.element_shards(&[index, base, delta])? {
                let params = [chosen.len() as u32, part.start as u32, part.end as u32];
                let [index, base, delta] = [index, base, delta].map(|t| elements(t, &chosen));
                let remainder = remainder.map_or(UNUSED, |remainder| elements(remainder, &chosen));
                let bindings = [elements(w, &part), index, base, delta, remainder];
                self.push("scatter", &constants, &params, &bindings).threads(chosen.len());
            }
        }
        Ok(())
    }

    pub(super) fn sparse_linear(&mut self, op: &SparseLinear) -> Result<(), String> {
        let (x, values, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        let (width, made, n) = (width_of(x), width_of(y), values.ty.numel());
        let columns = self.input(5)?.ty.numel() - 1;
        // A matrix without elements is not read.
        let of_elements = |i: usize, what: &str| if n == 0 { Ok(UNUSED) } else { self.whole(self.input(i)?, what) };
        let (elements, index, order) = (of_elements(1, "values")?, of_elements(2, "index")?, of_elements(4, "order")?);
        let starts = self.whole(self.input(if op.transposed { 5 } else { 3 })?, "the lines' starts")?;
        let constants = [("X", code(x.ty.dtype)), ("TRANSPOSED", u32::from(op.transposed))];
        // Its loads are scattered: one takes about as long as eight multiplications of a product.
        let most = self.rows_for_flops(8 * 2 * n);
        for shard in self.row_shards(&[x, y])?.iter().flat_map(|shard| split(shard, most)) {
            let params = [shard.len() * made, width, made, columns, n].map(|x| x as u32);
            let bindings = [rows(x, &shard), elements, index, starts, order, rows(y, &shard)];
            self.push("sparse_linear", &constants, &params, &bindings).threads(shard.len() * made);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::lower::{Bounds, MatrixUnits, Step, lower, sampled_cost};
    use sparta_graph::graph::TensorType;
    use sparta_graph::ops::{SampledGrad, Sampling};
    use sparta_graph::{Call, DType, DeviceKind, Operand, Place};

    /// The share above which the dense product is used depends on the device's multiplication units.
    #[test]
    fn the_cheaper_kernel_is_chosen_for_the_device() {
        let kernel = |kind: DeviceKind, units: Option<MatrixUnits>, dtype: DType, chosen: usize| {
            let operand = |i, ty| Operand { place: Place::External(i), ty };
            let call = Call {
                op: SampledGrad { scale: 1.0, sampling: Sampling::Auto }.into(),
                inputs: vec![
                    operand(0, TensorType::new(dtype, [64, 80])),
                    operand(1, TensorType::new(dtype, [64, 128])),
                    operand(2, TensorType::new(DType::U32, [chosen])),
                    operand(3, TensorType::new(DType::U32, [81])),
                ],
                outputs: vec![operand(4, TensorType::f32([chosen]))],
                label: String::new(),
            };
            let bounds =
                Bounds { units, sampled_cost: sampled_cost(kind, units.as_ref()), ..Bounds::new(kind, 1 << 27) };
            let Some(Step::Dispatch(dispatch)) = lower(&call, bounds).unwrap().steps.pop() else { panic!() };
            dispatch.kernel.name
        };
        let units =
            Some(MatrixUnits { size: 16, subgroup: 32, vectors: true, transpose: true, memory: MatrixUnits::MEMORY });
        let discrete = DeviceKind::DiscreteGpu;
        assert_eq!(kernel(discrete, None, DType::BF16, 100), "sampled_grad");
        assert_eq!(kernel(discrete, units, DType::F32, 100), "sampled_grad");
        assert_eq!(kernel(discrete, units, DType::BF16, 100), "sampled_grad_tiled");
        assert_eq!(kernel(discrete, units, DType::BF16, 15), "sampled_grad");
        assert_eq!(kernel(discrete, None, DType::F32, 200), "sampled_grad_tiled");
        assert_eq!(kernel(DeviceKind::SoftwareGpu, units, DType::BF16, 200), "sampled_grad");
    }
}
