// y = factor * x
struct Params {
    n: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    return p.factor * decode(X, x[word_of(X, e)], e);
}
