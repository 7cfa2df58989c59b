// dlogits = d_loss * step[LOSS_WEIGHT] * (softmax - one_hot), times the slope of the soft cap where CAP is 1; zero in
// ignored rows.
struct Params {
    n: u32,
    classes: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> step: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_loss: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlogits: array<f32>;

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
    let row = i / p.classes;
    let label = labels[row];
    if (label == IGNORED) {
        dlogits[i] = 0.0;
        return;
    }
    let wanted = select(0.0, 1.0, label == i % p.classes);
    var logit = logits[i];
    var slope = 1.0;
    if (CAP == 1u) {
        let t = safe_tanh(logit / p.cap);
        logit = p.cap * t;
        slope = 1.0 - t * t;
    }
    dlogits[i] = d_loss[0] * step[3] * (exp(logit - lse[row]) - wanted) * slope;
}
