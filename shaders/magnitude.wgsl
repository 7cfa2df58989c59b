// The largest finite magnitude of a matrix of 16-bit elements, f32: one number for each workgroup.
struct Params {
    // Vectors of 8 elements.
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> magnitudes: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // As whole numbers, bits of floats that are not negative have the order of the floats.
    var largest = vec4<u32>();
    for (var i = group.x * LANES + lane; i < p.n; i += groups.x * LANES) {
        let words = x[i];
        for (var half = 0u; half < 2u; half++) {
            var bits = vec4<u32>();
            for (var e = 0u; e < 4u; e++) {
                bits[e] = bitcast<u32>(decode(X, words[e], half)) & 0x7fffffffu;
            }
            largest = max(largest, select(bits, vec4<u32>(), bits >= vec4<u32>(0x7f800000u)));
        }
    }
    let both = max(largest.xy, largest.zw);
    let most = max_lanes(lane, bitcast<f32>(max(both.x, both.y)));
    if (lane == 0u) {
        magnitudes[group.x] = most;
    }
}
