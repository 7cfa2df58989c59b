// The result of linear, from products. TYPE_C is its type, BIAS and RESIDUAL are 0 for none, otherwise 1 + the type. Where it has
// 16 bits, rows of c have an even width, the range begins at an even column, and nothing accumulates.
@group(0) @binding(3) var<storage, read> bias: array<u32>;
@group(0) @binding(4) var<storage, read> residual: array<u32>;
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

// The columns n and n + 1 of row m.
fn put_pair(m: u32, n: u32, products: vec2<f32>) {
    if (n >= p.n) {
        return;
    }
    let column = p.c_column + n;
    let i = m * p.c_stride + column;
    if (TYPE_C != F32) {
        c[i >> 1u] = pack(TYPE_C, vec2<f32>(finish(i, column, products.x), finish(i + 1u, column + 1u, products.y)));
        return;
    }
    c[i] = bitcast<u32>(finish(i, column, products.x));
    if (n + 1u < p.n) {
        c[i + 1u] = bitcast<u32>(finish(i + 1u, column + 1u, products.y));
    }
}

// Four columns from n on.
fn put(m: u32, n: u32, products: vec4<f32>) {
    if (m < p.m) {
        put_pair(m, n, products.xy);
        put_pair(m, n + 2u, products.zw);
    }
}
