// Gradient descent, in place; with STATE a momentum in `b`. clip = (norm, factor), where a negative factor stops the
// update; step = (learning rate, ...).
struct Params {
    n: u32,
    momentum: f32,
    weight_decay: f32,
    lr_factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> clip: array<f32>;
@group(0) @binding(4) var<storage, read_write> step: array<f32>;
@group(0) @binding(5) var<storage, read_write> b: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    if (i >= p.n || clip[1] < 0.0) {
        return;
    }
    var direction = clip[1] * grad[i] + p.weight_decay * w[i];
    if (STATE == 1u) {
        direction = p.momentum * b[i] + direction;
        b[i] = direction;
    }
    w[i] = w[i] - p.lr_factor * step[0] * direction;
}
