// y[rows[i]] = x[i] where the row is among the bound rows [first, last) of y; one thread per word of y, so rows have an even
// width where Y has 16 bits.
struct Params {
    n: u32,
    width: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

const PER_WORD: u32 = 1u + min(Y, 1u);

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_id(group, groups) * LANES + lane;
    let first = PER_WORD * i;
    if (first >= p.n) {
        return;
    }
    let row = rows[first / p.width];
    if (row < p.first || row >= p.last) {
        return;
    }
    var word = 0u;
    for (var e = first; e < first + PER_WORD; e++) {
        word = insert(Y, word, e, decode(X, x[word_of(X, e)], e));
    }
    y[word_of(Y, (row - p.first) * p.width + first % p.width)] = word;
}
