// linear from the products of pieces of k, which are added in order; one thread per four columns.
@group(0) @binding(1) var<storage, read_write> partial: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let width = (p.n + 3u) / 4u;
    let i = linear_id(group, groups) * LANES + lane;
    if (i >= p.m * width) {
        return;
    }
    var sum = vec4<f32>();
    for (var piece = 0u; piece < p.pieces; piece++) {
        sum += partial[piece * p.m * width + i];
    }
    put(i / width, 4u * (i % width), sum);
}
