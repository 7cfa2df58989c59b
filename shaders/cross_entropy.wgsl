// The log-sum-exp of each row of logits and its loss; one workgroup per row. CAP: 1 where logits are soft-capped.
struct Params {
    rows: u32,
    classes: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;

fn logit(i: u32) -> f32 {
    if (CAP == 1u) {
        return p.cap * safe_tanh(logits[i] / p.cap);
    }
    return logits[i];
}

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
    let base = row * p.classes;
    var largest = -3.0e38;
    for (var i = lane; i < p.classes; i += LANES) {
        largest = max(largest, logit(base + i));
    }
    largest = max_lanes(lane, largest);
    var sum = 0.0;
    for (var i = lane; i < p.classes; i += LANES) {
        sum += exp(logit(base + i) - largest);
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        let log_sum = largest + log(sum);
        lse[row] = log_sum;
        let label = labels[row];
        losses[row] = 0.0;
        if (label < p.classes) {
            losses[row] = log_sum - logit(base + label);
        }
    }
}
