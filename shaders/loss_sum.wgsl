// loss = step[LOSS_WEIGHT] * sum of the rows' losses; one workgroup.
struct Params {
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> losses: array<f32>;
@group(0) @binding(2) var<storage, read> step: array<f32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.rows; i += LANES) {
        sum += losses[i];
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        loss[0] = step[3] * sum;
    }
}
