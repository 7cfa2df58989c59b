// dx = r (g - x r^2 mean(g x)) + acc with g = dy * (offset + w); one workgroup per norm.
struct Params {
    norms: u32,
    width: u32,
    eps: f32,
    offset: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<u32>;
@group(0) @binding(3) var<storage, read_write> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> acc: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

fn weight(i: u32) -> f32 {
    return p.offset + decode(W, w[word_of(W, i)], i);
}

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
    let base = norm * p.width;
    var squares = 0.0;
    var products = 0.0;
    for (var i = lane; i < p.width; i += LANES) {
        squares += x[base + i] * x[base + i];
        products += dy[base + i] * weight(i) * x[base + i];
    }
    let r = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.width) + p.eps);
    let shift = r * r * sum_lanes(lane, products) / f32(p.width);
    for (var i = lane; i < p.width; i += LANES) {
        var sum = r * (dy[base + i] * weight(i) - x[base + i] * shift);
        if (ACC == 1u) {
            sum += acc[base + i];
        }
        dx[base + i] = sum;
    }
}
