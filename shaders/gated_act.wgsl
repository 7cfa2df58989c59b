// y = act(gate) * up
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> gate: array<u32>;
@group(0) @binding(2) var<storage, read_write> up: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    return activate(decode(X, gate[word_of(X, e)], e)).x * decode(X, up[word_of(X, e)], e);
}
