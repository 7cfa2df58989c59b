// y = dy * (1 - tanh(x / cap)^2)
struct Params {
    n: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> dy: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    let t = safe_tanh(decode(X, x[word_of(X, e)], e) / p.cap);
    return decode(X, dy[word_of(X, e)], e) * (1.0 - t * t);
}
