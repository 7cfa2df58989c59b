// ld = (log-sum-exp, o . do) of each row and head; one workgroup per pair.
struct Params {
    pairs: u32,
    head_dim: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> o: array<u32>;
@group(0) @binding(2) var<storage, read_write> d_o: array<u32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> ld: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pair = linear_id(group, groups);
    if (pair >= p.pairs) {
        return;
    }
    var sum = 0.0;
    for (var i = pair * p.head_dim + lane; i < (pair + 1u) * p.head_dim; i += LANES) {
        sum += decode(X, o[word_of(X, i)], i) * decode(X, d_o[word_of(X, i)], i);
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        ld[2u * pair] = lse[pair];
        ld[2u * pair + 1u] = sum;
    }
}
