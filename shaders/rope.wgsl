// Rotation of the pairs (i, i + head_dim / 2) of each head; one thread per pair. `row` is the number of the first row
// bound.
struct Params {
    n: u32,
    row: u32,
    width: u32,
    head_dim: u32,
    positions: u32,
    direction: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> spans: array<u32>;
@group(0) @binding(3) var<storage, read_write> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

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
    let half = p.head_dim / 2u;
    let pairs = p.width / 2u;
    let t = i / pairs;
    let pair = i % pairs;
    let d = pair % half;
    let at = t * p.width + (pair / half) * p.head_dim + d;
    let position = min(p.row + t - spans[2u * t], p.positions - 1u);
    let cosine = table[position * p.head_dim + d];
    let sine = p.direction * table[position * p.head_dim + half + d];
    let a = x[at];
    let b = x[at + half];
    y[at] = a * cosine - b * sine;
    y[at + half] = b * cosine + a * sine;
}
