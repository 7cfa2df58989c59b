// Comes before the kernels of matrix products. A, B and C are the operands' types, BIAS and RESIDUAL 0 for none, otherwise
// 1 + the type. Where C has 16 bits, rows of c have an even width, the range begins at an even column, and nothing
// accumulates.
struct Params {
    m: u32,
    n: u32,
    k: u32,
    // Elements from one stored row to the next.
    a_stride: u32,
    b_stride: u32,
    c_stride: u32,
    // First column of the range in a, and in c (and residual and bias).
    a_column: u32,
    c_column: u32,
    scale: f32,
    // Add to what c holds, instead of bias and residual.
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> a: array<u32>;
@group(0) @binding(2) var<storage, read_write> b: array<u32>;
@group(0) @binding(3) var<storage, read_write> bias: array<u32>;
@group(0) @binding(4) var<storage, read_write> residual: array<u32>;
@group(0) @binding(5) var<storage, read_write> c: array<u32>;

// The element at i of c, in this column, from its product.
fn finish(i: u32, column: u32, product: f32) -> f32 {
    var sum = p.scale * product;
    if (p.accumulate == 1u) {
        return sum + bitcast<f32>(c[i]);
    }
    if (BIAS != 0u) {
        sum += decode(BIAS - 1u, bias[word_of(BIAS - 1u, column)], column);
    }
    if (RESIDUAL != 0u) {
        sum += decode(RESIDUAL - 1u, residual[word_of(RESIDUAL - 1u, i)], i);
    }
    return sum;
}
