//! Tiled matrix products: the division of a product into workgroups, and the launch of the tiles.

use super::choice::{Question, classes};
use super::{Lowering, MatrixUnits, UNUSED, View, code, rows, width_of};
use crate::source::LANES;
use sparta_graph::ops::Layout;
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{Choice, DType, Operand};
use std::ops::Range;

/// Enough workgroups to keep a large GPU busy.
const BUSY: usize = 256;
/// With this many tiles or more, k is not split: the gain would not exceed the cost of launching the sums.
const ENOUGH_TILES: usize = 64;
/// With fewer tiles, the shortest piece of k that is summed separately.
const SHORTEST_PIECE: usize = 256;
/// With this many workgroups or more, large tiles keep a GPU busy; with fewer, small ones do.
const LARGE_TILES: usize = 64;
/// The depth of a tile; a piece's depth is a multiple of it.
const DEPTH: usize = 32;

/// Elements of 16 bits that products on matrix units load at once.
const UNITS_VECTOR: usize = 8;
/// The most candidates for an operand's largest magnitude, and the room for them that `product_units.wgsl` reads.
const MAGNITUDES: usize = LANES as usize;

/// A matrix that is bound by rows, of which a product reads a range of columns.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub view: View,
    pub dtype: DType,
    /// Elements of a stored row.
    pub width: usize,
    pub first_column: usize,
    pub columns: usize,
}

impl Factor {
    /// Ranges of an operand's stored rows and columns.
    pub fn new(operand: &Operand, range: &Range<usize>, columns: &Range<usize>) -> Self {
        let (width, first_column, columns) = (width_of(operand), columns.start, columns.len());
        Factor { view: rows(operand, range), dtype: operand.ty.dtype, width, first_column, columns }
    }

    /// A range of an operand's stored rows.
    pub fn all_columns(operand: &Operand, range: &Range<usize>) -> Self {
        Self::new(operand, range, &(0..width_of(operand)))
    }

    /// Whether its ranges are whole vectors of this many elements, and at least one.
    fn in_vectors(&self, elements: usize) -> bool {
        self.columns > 0 && [self.width, self.first_column, self.columns].iter().all(|x| x.is_multiple_of(elements))
    }
}

/// One product, `[m, k] x [k, n]`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub layout: Layout,
    pub a: Factor,
    pub b: Factor,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// The destination of a product: stored rows of the result, operations on it, and the chosen elements if it is sampled.
#[derive(Clone, Copy, Default)]
pub(super) struct Epilogue {
    pub c_stride: usize,
    pub c_column: usize,
    pub scale: f32,
    pub accumulate: bool,
    pub chosen: (usize, usize),
}

/// The tiles of a product, as a rule or a measurement chooses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    /// Tiles are 64 or 128 wide: 64 times this.
    blocks: usize,
    /// The number of ranges of k that are summed separately.
    pieces: usize,
    /// The unroll factor of the k loop in f32.
    unroll: u32,
}

impl Form {
    /// What sizes suggest. `unroll` is for large tiles in f32; unrolling gains nothing in small ones.
    fn by_rule([m, n, k]: [usize; 3], unroll: u32) -> Self {
        let most = most_pieces(k);
        let blocks = if m.min(n) > 64 && tiles(2, m, n) * most >= LARGE_TILES { 2 } else { 1 };
        let wanted = if tiles(blocks, m, n) < ENOUGH_TILES { BUSY / tiles(blocks, m, n) } else { 1 };
        Form { blocks, pieces: wanted.min(most).max(1), unroll: if blocks == 1 { 1 } else { unroll } }
    }

    /// What may be faster on some device, beginning with what sizes suggest. Large tiles are tried with each of `unrolls`.
    fn candidates([m, n, k]: [usize; 3], unroll: u32, unrolls: &[u32]) -> Vec<Self> {
        let mut all = vec![Form::by_rule([m, n, k], unroll)];
        for blocks in if m.min(n) > 64 { 1..=2 } else { 1..=1 } {
            let unrolls = if blocks == 1 { &[1] } else { unrolls };
            let busy = BUSY / tiles(blocks, m, n);
            let pieces = [1, busy / 2, busy, 2 * busy].map(|pieces| pieces.clamp(1, most_pieces(k)));
            all.extend(
                pieces.iter().flat_map(|&pieces| unrolls.iter().map(move |&unroll| Form { blocks, pieces, unroll })),
            );
        }
        let mut seen = Vec::new();
        all.retain(|form| {
            !seen.contains(form) && {
                seen.push(*form);
                true
            }
        });
        all
    }

    fn choice(&self) -> Choice {
        let numbers = [self.blocks, self.pieces, self.unroll as usize].map(|number| number as u32);
        CHOSEN.into_iter().map(str::to_owned).zip(numbers).collect()
    }

    /// `None`: no kernel is like this.
    fn of(choice: &Choice) -> Option<Self> {
        let [blocks, pieces, unroll] = CHOSEN.map(|name| choice.get(name).copied());
        let (blocks, pieces, unroll) = (blocks?, pieces?, unroll?);
        let valid = matches!(blocks, 1 | 2) && pieces > 0 && (unroll == 1 || blocks == 2 && UNROLLS.contains(&unroll));
        valid.then_some(Form { blocks: blocks as usize, pieces: pieces as usize, unroll })
    }
}

/// Names of a form's numbers.
const CHOSEN: [&str; 3] = ["blocks", "pieces", "unroll"];
/// Unroll factors of large tiles.
const UNROLLS: [u32; 2] = [1, 16];

fn tiles(blocks: usize, m: usize, n: usize) -> usize {
    (m.div_ceil(64 * blocks) * n.div_ceil(64 * blocks)).max(1)
}

fn most_pieces(k: usize) -> usize {
    (k / SHORTEST_PIECE).max(1)
}

/// The workgroups of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    blocks: usize,
    /// The number of ranges of k that are summed separately, and the length of each.
    pub pieces: usize,
    piece: usize,
    unroll: u32,
}

impl Tiling {
    /// The tiling for a device that limits the iterations of a thread's loops and the bytes of a binding.
    fn new(form: Form, [m, n, k]: [usize; 3], rounds: usize, binding: usize) -> Self {
        let bytes = 4 * (m * n.next_multiple_of(4)).max(1);
        // A thread has an iteration for each k, and one more for each tile of k.
        let needed = k.div_ceil((rounds / 2).max(DEPTH));
        let pieces = form.pieces.min(k.div_ceil(DEPTH)).min(binding / bytes).max(1).max(needed);
        let piece = k.div_ceil(pieces).next_multiple_of(DEPTH).max(DEPTH);
        Tiling { blocks: form.blocks, pieces: k.div_ceil(piece).max(1), piece, unroll: form.unroll }
    }

    fn groups(&self, m: usize, n: usize) -> usize {
        tiles(self.blocks, m, n) * self.pieces
    }
}

/// What multiplies, in the names of choices.
pub(super) fn multiplier(on_units: bool) -> &'static str {
    if on_units { "units" } else { "f32" }
}

impl Lowering<'_> {
    /// The most k of one dispatch, when each takes this many floating point operations; a multiple of every alignment.
    pub(super) fn rows_for_flops(&self, flops: usize) -> usize {
        let most = usize::try_from(self.bounds.flops).unwrap_or(usize::MAX) / flops.max(1);
        (most / ALIGNMENT).max(1) * ALIGNMENT
    }

    /// The matrix units that serve a product.
    pub(super) fn units(&self, product: &Product) -> Option<MatrixUnits> {
        let serves = |factor: Factor| factor.dtype.size() == 2 && factor.in_vectors(UNITS_VECTOR);
        self.bounds.units.filter(|_| serves(product.a) && serves(product.b))
    }

    /// The tiling of a product on this device.
    pub(super) fn tiling(&mut self, product: &Product) -> Tiling {
        let Product { layout, a, b, m, n, k } = *product;
        let (sizes, types) = ([m, n, k], [a.dtype, b.dtype]);
        let on_units = self.units(product).is_some();
        let (unroll, flops) = (self.unroll(product), self.bounds.flops);
        let name = || {
            let [m, n, k] = classes(sizes);
            let layout = format!("{layout:?}").to_lowercase();
            format!("product {} {layout} {}*{} {m}x{n}x{k}", multiplier(on_units), types[0], types[1])
        };
        // A software driver, whose compiler takes long over unrolled loops, limits rounds.
        let unrolls = if on_units || self.bounds.rounds < usize::MAX { &UNROLLS[..1] } else { &UNROLLS };
        let question = |name| {
            let forms = Form::candidates(sizes, unroll, unrolls).iter().map(Form::choice).collect();
            Question::product(name, layout, types, sizes, flops, forms)
        };
        match self.chosen(name, question).and_then(Form::of) {
            Some(form) => Tiling::new(form, sizes, self.bounds.rounds, self.bounds.binding),
            None => self.tiling_by_rule(product),
        }
    }

    pub(super) fn tiling_by_rule(&self, product: &Product) -> Tiling {
        let sizes = [product.m, product.n, product.k];
        let form = Form::by_rule(sizes, self.unroll(product));
        Tiling::new(form, sizes, self.bounds.rounds, self.bounds.binding)
    }

    /// The unroll factor of large tiles by rule; matrix units have none.
    fn unroll(&self, product: &Product) -> u32 {
        if self.units(product).is_some() { 1 } else { self.bounds.unroll }
    }

    /// The `Params` of all kernels of products.
    pub(super) fn product_params(product: &Product, epilogue: &Epilogue, tiling: &Tiling) -> Vec<u32> {
        let Product { m, n, k, a, b, .. } = *product;
        let mut params = vec![m, n, k, a.width, b.width, epilogue.c_stride, a.first_column, epilogue.c_column];
        params.extend([epilogue.scale.to_bits() as usize, usize::from(epilogue.accumulate)]);
        params.extend([tiling.pieces, tiling.piece, epilogue.chosen.0, epilogue.chosen.1]);
        // Magnitudes, which products on matrix units have.
        params.extend([0, 0]);
        params.into_iter().map(|x| x as u32).collect()
    }

    /// Launches a kernel that makes tiles, with both factors and its other bindings: on matrix units if the device has
    /// them and both factors are 16-bit, so that nothing is rounded that f32 would not round.
    pub(super) fn push_tiles(
        &mut self,
        name: &'static str,
        constants: &[(&'static str, u32)],
        product: &Product,
        (tiling, params): (&Tiling, &[u32]),
        others: &[View],
    ) -> Result<(), String> {
        let Product { a, b, .. } = product;
        let layout = match product.layout {
            Layout::Nt => 0,
            Layout::Nn => 1,
            Layout::Tn => 2,
        };
        let mut all = vec![("TYPE_A", code(a.dtype)), ("TYPE_B", code(b.dtype)), ("LAYOUT", layout)];
        let whole = product.k > 0 && product.k.is_multiple_of(DEPTH);
        let edges = [product.m, product.n].iter().any(|x| !x.is_multiple_of(64 * tiling.blocks));
        all.extend([("BLOCKS", tiling.blocks as u32), ("WHOLE", u32::from(whole)), ("EDGES", u32::from(edges))]);
        all.extend(constants);
        let mut params = params.to_vec();
        let mut bindings = [&[a.view, b.view], others].concat();
        let used = self.used;
        match self.units(product) {
            Some(units) => {
                all.extend(units.constants());
                bindings.resize(5, UNUSED);
                params.truncate(params.len() - 2);
                let [of_a, of_b] = self.push_magnitudes([a, b])?;
                bindings.extend([of_a.0, of_b.0]);
                params.extend([of_a.1, of_b.1]);
            }
            None => {
                all.push(("VECTORS", u32::from(a.in_vectors(4) && b.in_vectors(4))));
                all.push(("UNROLL", tiling.unroll));
            }
        }
        self.push(name, &all, &params, &bindings).groups(tiling.groups(product.m, product.n));
        self.used = used;
        Ok(())
    }

    /// Launches the search for the largest magnitude of each factor; returns the candidates and their number.
    fn push_magnitudes(&mut self, [a, b]: [&Factor; 2]) -> Result<[(View, u32); 2], String> {
        let vectors = [a, b].map(|factor| factor.view.bytes / 16);
        let [of_a, of_b] = vectors.map(|vectors| vectors.div_ceil(LANES as usize).clamp(1, MAGNITUDES));
        let what = "the largest magnitudes of an operand";
        let found = [self.scratch(MAGNITUDES, what)?, self.scratch(MAGNITUDES, what)?];
        let params = [vectors[0], vectors[1], of_a].map(|x| x as u32);
        let bindings = [a.view, b.view, found[0], found[1]];
        self.push("magnitude", &[("A", code(a.dtype)), ("B", code(b.dtype))], &params, &bindings).groups(of_a + of_b);
        Ok([(found[0], of_a as u32), (found[1], of_b as u32)])
    }

    /// Launches the products of pieces of k separately. The caller must free the scratch memory that holds them, f32
    /// [pieces, m, n rounded up to 4].
    pub(super) fn push_partial(&mut self, product: &Product, tiling: &Tiling, params: &[u32]) -> Result<View, String> {
        let elements = tiling.pieces * product.m * product.n.next_multiple_of(4);
        let partial = self.scratch(elements, "the sums of parts of a product")?;
        self.push_tiles("product_partial", &[], product, (tiling, params), &[partial])?;
        Ok(partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{Bounds, Step, lower};
    use sparta_graph::graph::TensorType;
    use sparta_graph::ops::Linear;
    use sparta_graph::{Call, DeviceKind, Place};

    /// Matrix units are used only for two 16-bit operands in whole vectors.
    #[test]
    fn matrix_units_multiply_16_bit_operands() {
        let on_units = |a: DType, b: DType, k: usize| {
            let operand = |i, ty| Operand { place: Place::External(i), ty };
            let call = Call {
                op: Linear { output: Some(DType::F32), ..Linear::plain(Layout::Nt) }.into(),
                inputs: vec![operand(0, TensorType::new(a, [24, k])), operand(1, TensorType::new(b, [16, k]))],
                outputs: vec![operand(2, TensorType::f32([24, 16]))],
                label: String::new(),
            };
            let units = Some(MatrixUnits {
                size: 16,
                subgroup: 32,
                vectors: true,
                transpose: true,
                memory: MatrixUnits::MEMORY,
            });
            let bounds = Bounds { units, ..Bounds::new(DeviceKind::Other, 1 << 27) };
            let steps = lower(&call, bounds).unwrap().steps.into_iter();
            let kernels = steps.filter_map(|step| if let Step::Dispatch(d) = step { Some(d.kernel) } else { None });
            let names: Vec<_> = kernels.map(|k| (k.name, k.constants.contains(&("UNITS", 16)))).collect();
            match names[..] {
                [("magnitude", _), ("linear", true)] => true,
                [("linear", false)] => false,
                _ => panic!("{names:?}"),
            }
        };
        assert!(on_units(DType::BF16, DType::BF16, 32) && on_units(DType::BF16, DType::F16, 72));
        assert!(!on_units(DType::F32, DType::F32, 32) && !on_units(DType::F32, DType::BF16, 32));
        assert!(!on_units(DType::BF16, DType::BF16, 36));
    }

    fn by_rule(sizes: [usize; 3], rounds: usize, binding: usize) -> Tiling {
        Tiling::new(Form::by_rule(sizes, 1), sizes, rounds, binding)
    }

    #[test]
    fn candidates_are_few_and_differ() {
        for (sizes, on_units, most) in [
            ([4096, 16384, 2048], false, 3),
            ([4096, 16384, 2048], true, 2),
            ([512, 512, 2048], false, 12),
            ([8, 2048, 4096], false, 4),
            ([20, 30, 40], false, 1),
        ] {
            let (unroll, unrolls) = if on_units { (1, &UNROLLS[..1]) } else { (16, &UNROLLS[..]) };
            let forms = Form::candidates(sizes, unroll, unrolls);
            assert!((1..=most).contains(&forms.len()), "{sizes:?}: {forms:?}");
            assert_eq!(forms[0], Form::by_rule(sizes, unroll));
            assert!(forms.iter().enumerate().all(|(i, form)| !forms[..i].contains(form)), "{forms:?}");
            assert!(forms.iter().all(|form| Form::of(&form.choice()) == Some(*form)), "{forms:?}");
        }
    }

    #[test]
    fn products_are_cut_to_keep_a_gpu_busy() {
        let cut = |m, n, k| {
            let tiling = by_rule([m, n, k], usize::MAX, 1 << 27);
            (tiling.blocks, tiling.pieces, tiling.piece)
        };
        // The layers of a large model: enough tiles.
        assert_eq!(cut(4096, 16384, 2048), (2, 1, 2048));
        assert_eq!(cut(4096, 256, 2048), (2, 1, 2048));
        // Low-rank factors, and the pooled rows of the last layer.
        assert_eq!(cut(8, 2048, 4096), (1, 8, 512));
        assert_eq!(cut(16, 2048, 16384), (1, 8, 2048));
        // Too short to be cut, and empty.
        assert_eq!(cut(64, 64, 500), (1, 1, 512));
        assert_eq!(cut(20, 30, 0), (1, 1, 32));
        assert_eq!(by_rule([20, 30, 100_000], 60_000, 0).pieces, 4);
        for k in [1, 257, 4097, 99_999] {
            let tiling = by_rule([100, 100, k], usize::MAX, 1 << 27);
            assert!(tiling.piece * tiling.pieces >= k && tiling.piece * (tiling.pieces - 1) < k);
        }
    }
}
