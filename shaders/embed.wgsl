// y[t] = scale * table[tokens[t]] where the token is among the bound rows [first, last) of the table; one thread per word
// of y. Also select_rows.
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
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

const PER_WORD: u32 = 1u + min(Y, 1u);

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    if (PER_WORD * i >= p.n) {
        return;
    }
    // Another dispatch may have written the other half.
    var word = y[i];
    for (var e = PER_WORD * i; e < min(PER_WORD * (i + 1u), p.n); e++) {
        let token = tokens[e / p.width];
        if (token >= p.first && token < p.last) {
            let source = (token - p.first) * p.width + e % p.width;
            word = insert(Y, word, e, p.scale * decode(TABLE, table[word_of(TABLE, source)], source));
        }
    }
    y[i] = word;
}
