// The same numbers in another type; one thread per word of the output.
struct Params {
    n: u32,
    elements: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

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
    if (TO == F32) {
        y[i] = bitcast<u32>(decode(FROM, x[word_of(FROM, i)], i));
        return;
    }
    let first = 2u * i;
    var word = encode(TO, decode(FROM, x[word_of(FROM, first)], first));
    if (first + 1u < p.elements) {
        word |= encode(TO, decode(FROM, x[word_of(FROM, first + 1u)], first + 1u)) << 16u;
    }
    y[i] = word;
}
