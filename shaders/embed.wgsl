// y[t] = scale * table[tokens[t]] where the token is among the bound rows [first, last) of the table. Also select_rows.
struct Params {
    n: u32,
    width: u32,
    first: u32,
    last: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

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
    let token = tokens[i / p.width];
    if (token >= p.first && token < p.last) {
        let e = (token - p.first) * p.width + i % p.width;
        y[i] = p.scale * decode(TABLE, table[word_of(TABLE, e)], e);
    }
}
