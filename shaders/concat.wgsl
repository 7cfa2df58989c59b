// Fills the gaps of a joined tensor with zeros: from each end to the next multiple of 64 elements. One workgroup of 64 per
// gap; the elements from `first` on are bound.
struct Params {
    first: u32,
    // Four ends each.
    ends: array<vec4<u32>, 14>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let end = p.ends[group.x / 4u][group.x % 4u] - p.first;
    if (lane >= end % 64u) {
        y[end - end % 64u + lane] = 0.0;
    }
}
