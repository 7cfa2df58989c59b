// y = a + b; with BIAS, b is a vector that is added to every row of a.
struct Params {
    n: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> a: array<u32>;
@group(0) @binding(2) var<storage, read_write> b: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    var i = e;
    if (BIAS == 1u) {
        i = e % p.width;
    }
    return decode(A, a[word_of(A, e)], e) + decode(B, b[word_of(B, i)], i);
}
