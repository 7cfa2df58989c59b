// clip = (norm, min(1, max_norm / (norm + 1e-6))), factor -1 for a norm that is not finite; one workgroup.
struct Params {
    partials: u32,
    max_norm: f32,
    limited: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> norms: array<f32>;
@group(0) @binding(2) var<storage, read_write> clip: array<f32>;

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
        // By its bits: compilers may take comparisons with NaN or infinity away.
        if ((bitcast<u32>(norm) & 0x7f800000u) == 0x7f800000u) {
            clip[1] = -1.0;
        }
        // By bits: a compiler may assume that comparisons never meet a NaN.
        if ((bitcast<u32>(sum) & 0x7f800000u) == 0x7f800000u) {
            clip[1] = -1.0;
        }
    }
}
