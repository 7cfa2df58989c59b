// rate = 1 / sqrt(mean(x^2) + eps) of each norm, which rms_norm_grad_w reads; one workgroup per norm.
struct Params {
    norms: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> rate: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let norm = linear_id(group, groups);
    if (norm >= p.norms) {
        return;
    }
    var squares = 0.0;
    for (var i = norm * p.width + lane; i < (norm + 1u) * p.width; i += LANES) {
        let value = decode(X, x[word_of(X, i)], i);
        squares += value * value;
    }
    let mean = sum_lanes(lane, squares) / f32(p.width);
    if (lane == 0u) {
        rate[norm] = 1.0 / sqrt(mean + p.eps);
    }
}
