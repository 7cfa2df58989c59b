// linear in layout NT where c has few rows or few columns (heads, pooled rows, low-rank factors): one workgroup per 8
// rows of the columns of one word of c, its threads along k.
@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;

const ROWS: u32 = 8u;
const COLUMNS: u32 = 1u + min(TYPE_C, 1u);
const SUMS: u32 = ROWS * COLUMNS;
var<workgroup> partial: array<f32, SUMS * LANES>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.m + ROWS - 1u) / ROWS;
    let tile = linear_id(group, groups);
    let m0 = (tile % blocks) * ROWS;
    let n0 = (tile / blocks) * COLUMNS;
    if (n0 >= p.n) {
        return;
    }
    let rows = min(ROWS, p.m - m0);
    var sums: array<f32, SUMS>;
    for (var k = lane; k < p.k; k += LANES) {
        for (var j = 0u; j < COLUMNS; j++) {
            let i = (n0 + j) * p.b_stride + k;
            let weight = decode(TYPE_B, b[word_of(TYPE_B, i)], i);
            for (var r = 0u; r < rows; r++) {
                let source = (m0 + r) * p.a_stride + p.a_column + k;
                sums[ROWS * j + r] += weight * decode(TYPE_A, a[word_of(TYPE_A, source)], source);
            }
        }
    }
    for (var i = 0u; i < SUMS; i++) {
        partial[i * LANES + lane] = sums[i];
    }
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        if (lane < half) {
            for (var i = 0u; i < SUMS; i++) {
                partial[i * LANES + lane] += partial[i * LANES + lane + half];
            }
        }
        workgroupBarrier();
    }
    if (lane >= rows) {
        return;
    }
    let column = p.c_column + n0;
    let at = (m0 + lane) * p.c_stride + column;
    var word = 0u;
    for (var j = 0u; j < COLUMNS; j++) {
        word = insert(TYPE_C, word, j, finish(at + j, column + j, partial[(ROWS * j + lane) * LANES]));
    }
    c[word_of(TYPE_C, at)] = word;
}
