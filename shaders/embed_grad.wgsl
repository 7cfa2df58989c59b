// dtable[v] += scale * sum of dy[t] over tokens[t] == v, for the bound rows [first, last) of the table; one workgroup
// per row of dy, of which the first with a token adds all rows with that token, in order.
struct Params {
    rows: u32,
    width: u32,
    first: u32,
    last: u32,
    padding: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = linear_id(group, groups);
    if (row >= p.rows) {
        return;
    }
    let token = tokens[row];
    if (token < p.first || token >= p.last || token == p.padding) {
        return;
    }
    for (var t = 0u; t < row; t++) {
        if (tokens[t] == token) {
            return;
        }
    }
    let base = (token - p.first) * p.width;
    for (var t = row; t < p.rows; t++) {
        if (tokens[t] == token) {
            for (var i = lane; i < p.width; i += LANES) {
                dtable[base + i] += p.scale * dy[t * p.width + i];
            }
        }
    }
}
