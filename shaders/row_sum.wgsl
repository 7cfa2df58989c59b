// y = the sum of each row, a workgroup to a row.
struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = linear_id(group, groups);
    if (row >= p.rows) {
        return;
    }
    var sum = 0.0;
    for (var column = lane; column < p.width; column += LANES) {
        let i = row * p.width + column;
        sum += decode(X, x[word_of(X, i)], i);
    }
    let total = sum_lanes(lane, sum);
    if (lane == 0u) {
        y[row] = total;
    }
}
