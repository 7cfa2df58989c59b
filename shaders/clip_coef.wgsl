// clip = (norm, min(1, max_norm / (norm + 1e-6))); factor -1 where norm or loss is not finite, which sets the latch, and
// while the latch is set. One workgroup.
struct Params {
    partials: u32,
    max_norm: f32,
    limited: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> norms: array<f32>;
@group(0) @binding(2) var<storage, read> loss: array<f32>;
@group(0) @binding(3) var<storage, read_write> latch: array<f32>;
@group(0) @binding(4) var<storage, read_write> clip: array<f32>;

// By its bits: compilers may remove comparisons with NaN or infinity.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.partials; i += LANES) {
        sum += norms[i];
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        let norm = sqrt(sum);
        clip[0] = norm;
        clip[1] = 1.0;
        if (p.limited == 1u && norm + 1e-6 > p.max_norm) {
            clip[1] = p.max_norm / (norm + 1e-6);
        }
        if (!is_finite(sum) || !is_finite(norm) || !is_finite(loss[0])) {
            latch[0] = 1.0;
        }
        if (latch[0] != 0.0) {
            clip[1] = -1.0;
        }
    }
}
