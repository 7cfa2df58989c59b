// y = sum of x over the query heads that share a key head, in order; one thread per element of y.
struct Params {
    n: u32,
    head_dim: u32,
    shared_by: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    if (i >= p.n) {
        return;
    }
    let first = (i / p.head_dim) * p.shared_by * p.head_dim + i % p.head_dim;
    var sum = 0.0;
    for (var head = 0u; head < p.shared_by; head++) {
        sum += x[first + head * p.head_dim];
    }
    y[i] = sum;
}
