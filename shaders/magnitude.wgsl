// The largest finite magnitudes of two matrices of 16-bit elements, f32: one number for each workgroup, of which the first
// ones search a. A and B are the types.
struct Params {
    // Vectors of 8 elements.
    a: u32,
    b: u32,
    a_groups: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> a_magnitudes: array<f32>;
@group(0) @binding(4) var<storage, read_write> b_magnitudes: array<f32>;

// The larger of what was found so far and the finite values among 8 elements. Read as whole numbers, the bits of
// non-negative floats sort like the floats.
fn larger(found: vec4<u32>, dtype: u32, words: vec4<u32>) -> vec4<u32> {
    var largest = found;
    for (var half = 0u; half < 2u; half++) {
        var bits = vec4<u32>();
        for (var e = 0u; e < 4u; e++) {
            bits[e] = bitcast<u32>(decode(dtype, words[e], half)) & 0x7fffffffu;
        }
        largest = max(largest, select(bits, vec4<u32>(), bits >= vec4<u32>(0x7f800000u)));
    }
    return largest;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let of_a = group.x < p.a_groups;
    var largest = vec4<u32>();
    if (of_a) {
        for (var i = group.x * LANES + lane; i < p.a; i += p.a_groups * LANES) {
            largest = larger(largest, A, a[i]);
        }
    } else {
        for (var i = (group.x - p.a_groups) * LANES + lane; i < p.b; i += (groups.x - p.a_groups) * LANES) {
            largest = larger(largest, B, b[i]);
        }
    }
    let both = max(largest.xy, largest.zw);
    let most = max_lanes(lane, bitcast<f32>(max(both.x, both.y)));
    if (lane == 0u && of_a) {
        a_magnitudes[group.x] = most;
    } else if (lane == 0u) {
        b_magnitudes[group.x - p.a_groups] = most;
    }
}
