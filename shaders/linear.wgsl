// c = scale * op(a) op(b) + bias + residual, for ranges of rows and columns of the operands.
//
// A workgroup of 16 x 16 threads makes a tile of TILE x TILE elements of c, TILE = 64 * BLOCKS. A thread makes
// BLOCKS x BLOCKS blocks of 4 x 4. LAYOUT: 0 NT, 1 NN, 2 TN.
const TILE: u32 = 64u * BLOCKS;
const DEPTH: u32 = 16u / BLOCKS;
// Vectors from one k to the next; one more than needed keeps stores off the same memory bank.
const STRIDE: u32 = TILE / 4u + 1u;

// [k][m / 4] and [k][n / 4].
var<workgroup> a_tile: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> b_tile: array<vec4<f32>, DEPTH * STRIDE>;

fn a_at(m: u32, k: u32) -> f32 {
    if (m >= p.m || k >= p.k) {
        return 0.0;
    }
    let i = p.a_column + select(m * p.a_stride + k, k * p.a_stride + m, LAYOUT == 2u);
    return decode(A, a[word_of(A, i)], i);
}

fn b_at(n: u32, k: u32) -> f32 {
    if (n >= p.n || k >= p.k) {
        return 0.0;
    }
    let i = select(k * p.b_stride + n, n * p.b_stride + k, LAYOUT == 0u);
    return decode(B, b[word_of(B, i)], i);
}

// The columns n and n + 1 of row m.
fn store(m: u32, n: u32, products: vec2<f32>) {
    if (m >= p.m || n >= p.n) {
        return;
    }
    let column = p.c_column + n;
    let i = m * p.c_stride + column;
    if (C != F32) {
        c[i >> 1u] = pack(C, vec2<f32>(finish(i, column, products.x), finish(i + 1u, column + 1u, products.y)));
        return;
    }
    c[i] = bitcast<u32>(finish(i, column, products.x));
    if (n + 1u < p.n) {
        c[i + 1u] = bitcast<u32>(finish(i + 1u, column + 1u, products.y));
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_m = (p.m + TILE - 1u) / TILE;
    let tile = linear_id(group, groups);
    let m0 = (tile % tiles_m) * TILE;
    let n0 = (tile / tiles_m) * TILE;
    if (n0 >= p.n) {
        return;
    }
    let x = lane % 16u;
    let y = lane / 16u;
    var sums: array<vec4<f32>, 4u * BLOCKS * BLOCKS>;
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        // Each of 256 threads loads one of the 256 vectors of each tile, neighbours along the stored rows.
        let along_k = vec2<u32>(lane % DEPTH, lane / DEPTH);
        let along_rows = vec2<u32>(lane / (TILE / 4u), lane % (TILE / 4u));
        let at_a = select(along_k, along_rows, LAYOUT == 2u);
        let k_a = k0 + at_a.x;
        let m = m0 + 4u * at_a.y;
        a_tile[at_a.x * STRIDE + at_a.y] =
            vec4<f32>(a_at(m, k_a), a_at(m + 1u, k_a), a_at(m + 2u, k_a), a_at(m + 3u, k_a));
        let at_b = select(along_rows, along_k, LAYOUT == 0u);
        let k_b = k0 + at_b.x;
        let n = n0 + 4u * at_b.y;
        b_tile[at_b.x * STRIDE + at_b.y] =
            vec4<f32>(b_at(n, k_b), b_at(n + 1u, k_b), b_at(n + 2u, k_b), b_at(n + 3u, k_b));
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            for (var i = 0u; i < BLOCKS; i++) {
                let rows = a_tile[k * STRIDE + 16u * i + y];
                for (var j = 0u; j < BLOCKS; j++) {
                    let columns = b_tile[k * STRIDE + 16u * j + x];
                    let block = 4u * (i * BLOCKS + j);
                    sums[block] += rows.x * columns;
                    sums[block + 1u] += rows.y * columns;
                    sums[block + 2u] += rows.z * columns;
                    sums[block + 3u] += rows.w * columns;
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < BLOCKS; i++) {
        for (var j = 0u; j < BLOCKS; j++) {
            for (var r = 0u; r < 4u; r++) {
                let values = sums[4u * (i * BLOCKS + j) + r];
                let m = m0 + 64u * i + 4u * y + r;
                let n = n0 + 64u * j + 4u * x;
                store(m, n, values.xy);
                store(m, n + 2u, values.zw);
            }
        }
    }
}
