// Comes before elementwise kernels of two operands: BROADCAST 1: b is a row that meets every row of a; 2: a column.
struct Params {
    n: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> a: array<u32>;
@group(0) @binding(2) var<storage, read_write> b: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

fn first(e: u32) -> f32 {
    return decode(A, a[word_of(A, e)], e);
}

fn second(e: u32) -> f32 {
    var i = e;
    if (BROADCAST == 1u) {
        i = e % p.width;
    } else if (BROADCAST == 2u) {
        i = e / p.width;
    }
    return decode(B, b[word_of(B, i)], i);
}
