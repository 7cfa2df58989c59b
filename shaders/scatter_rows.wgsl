// y[rows[i]] = x[i] where the row is among the bound rows [first, last) of y, which holds zeros.
struct Params {
    n: u32,
    width: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

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
    let row = rows[i / p.width];
    if (row >= p.first && row < p.last) {
        y[(row - p.first) * p.width + i % p.width] = x[i];
    }
}
