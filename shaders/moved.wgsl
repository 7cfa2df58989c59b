// Element (i, j) of y is element (i + top) * down + (j + left) * across of x, where it lies in the block [height, width] that
// begins at (i + top, j + left) = 0; elsewhere 0. One thread per word. `row` is the number of the first row bound.
struct Params {
    n: u32,
    row: u32,
    columns: u32,
    top: i32,
    left: i32,
    height: u32,
    width: u32,
    down: u32,
    across: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    let i = i32(p.row + e / p.columns) + p.top;
    let j = i32(e % p.columns) + p.left;
    if (i < 0 || j < 0 || u32(i) >= p.height || u32(j) >= p.width) {
        return 0.0;
    }
    let source = u32(i) * p.down + u32(j) * p.across;
    return decode(X, x[word_of(X, source)], source);
}

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
    var word = 0u;
    for (var j = 0u; j < PER_WORD; j++) {
        let e = PER_WORD * i + j;
        if (e < p.n) {
            word = insert(Y, word, e, result(e));
        }
    }
    y[i] = word;
}
