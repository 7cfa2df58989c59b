// y = sum of the f32 x over the query heads that share a key head, in order.
struct Params {
    n: u32,
    head_dim: u32,
    shared_by: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    let first = (e / p.head_dim) * p.shared_by * p.head_dim + e % p.head_dim;
    var sum = 0.0;
    for (var head = 0u; head < p.shared_by; head++) {
        sum += x[first + head * p.head_dim];
    }
    return sum;
}
