// linear in layout NT where c has few rows or few columns (heads, pooled rows, low-rank factors): one workgroup per 8
// rows of one column of c, its threads along k. Parameters, operands and constants as in linear.wgsl.
struct Params {
    m: u32,
    n: u32,
    k: u32,
    a_stride: u32,
    b_stride: u32,
    c_stride: u32,
    a_column: u32,
    c_column: u32,
    scale: f32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> b: array<u32>;
@group(0) @binding(3) var<storage, read_write> bias: array<u32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

const ROWS: u32 = 8u;
var<workgroup> partial: array<f32, ROWS * LANES>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.m + ROWS - 1u) / ROWS;
    let tile = linear_id(group, groups);
    let m0 = (tile % blocks) * ROWS;
    let n = tile / blocks;
    if (n >= p.n) {
        return;
    }
    let rows = min(ROWS, p.m - m0);
    var sums: array<f32, ROWS>;
    for (var k = lane; k < p.k; k += LANES) {
        let i = n * p.b_stride + k;
        let weight = decode(B, b[word_of(B, i)], i);
        for (var r = 0u; r < rows; r++) {
            sums[r] += weight * a[(m0 + r) * p.a_stride + p.a_column + k];
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        partial[r * LANES + lane] = sums[r];
    }
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        if (lane < half) {
            for (var r = 0u; r < ROWS; r++) {
                partial[r * LANES + lane] += partial[r * LANES + lane + half];
            }
        }
        workgroupBarrier();
    }
    if (lane >= rows) {
        return;
    }
    let column = p.c_column + n;
    let i = (m0 + lane) * p.c_stride + column;
    var sum = p.scale * partial[lane * LANES];
    if (p.accumulate == 1u) {
        sum += c[i];
    } else {
        if (BIAS != 0u) {
            sum += decode(BIAS - 1u, bias[word_of(BIAS - 1u, column)], column);
        }
        if (RESIDUAL == 1u) {
            sum += residual[i];
        }
    }
    c[i] = sum;
}
