// A block of columns of a matrix, copied out of it or with JOIN into it; one thread per word. Sizes are in words.
struct Params {
    n: u32,
    width: u32,
    stride: u32,
    begin: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> matrix: array<u32>;
@group(0) @binding(2) var<storage, read_write> block: array<u32>;

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
    let at = i / p.width * p.stride + p.begin + i % p.width;
    if (JOIN == 1u) {
        matrix[at] = block[i];
    } else {
        block[i] = matrix[at];
    }
}
