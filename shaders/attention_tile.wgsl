// What the three attention kernels in f32 share. They work on tiles of 32 query rows and 32 key rows of one head; each of 128
// threads owns 4 rows and 2 neighbouring columns of a tile. X is the type of q, k, v and do, Y that of the outputs, of 16
// bits only if HEAD_DIM is even. SOFT_CAP and DROPOUT: 0 or 1.
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> k: array<u32>;
@group(0) @binding(3) var<storage, read_write> v: array<u32>;
@group(0) @binding(4) var<storage, read_write> spans: array<u32>;

const TILE: u32 = 32u;
// One more than needed keeps column accesses off the same memory bank.
const STRIDE: u32 = 33u;
// Slices of 32 along the head dimension.
const SLICES: u32 = (HEAD_DIM + 31u) / 32u;

var<workgroup> left: array<f32, TILE * STRIDE>;
var<workgroup> right: array<f32, TILE * STRIDE>;
var<workgroup> weights: array<f32, TILE * STRIDE>;
var<workgroup> bounds: array<u32, 2u * TILE>;
var<workgroup> bound: u32;

// Four rows of two columns.
struct Block {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn q_at(row: u32, head: u32, d: u32) -> f32 {
    if (row >= p.rows || d >= HEAD_DIM) {
        return 0.0;
    }
    let i = (row * p.heads + head) * HEAD_DIM + d;
    return decode(X, q[word_of(X, i)], i);
}

fn k_at(row: u32, head: u32, d: u32) -> f32 {
    if (row >= p.rows || d >= HEAD_DIM) {
        return 0.0;
    }
    let i = (row * p.kv_heads + head) * HEAD_DIM + d;
    return decode(X, k[word_of(X, i)], i);
}

fn v_at(row: u32, head: u32, d: u32) -> f32 {
    if (row >= p.rows || d >= HEAD_DIM) {
        return 0.0;
    }
    let i = (row * p.kv_heads + head) * HEAD_DIM + d;
    return decode(X, v[word_of(X, i)], i);
}

// Elements of a tile that a thread loads. Loops of constant length, 8 at most, are unrolled, which keeps the rounds of
// a thread low: llvmpipe ends all loops after 65,535 in total.
const LOADS: u32 = TILE * TILE / LANES;

// Adds left^T right, both stored [d][row].
fn multiply(lane: u32, so_far: Block) -> Block {
    var block = so_far;
    let r = 4u * (lane / 16u);
    let c = 2u * (lane % 16u);
    for (var d0 = 0u; d0 < TILE; d0 += 8u) {
        for (var i = 0u; i < 8u; i++) {
            let at = (d0 + i) * STRIDE;
            let rows = vec4<f32>(left[at + r], left[at + r + 1u], left[at + r + 2u], left[at + r + 3u]);
            block.a += rows * right[at + c];
            block.b += rows * right[at + c + 1u];
        }
    }
    return block;
}

// Adds weights right, or weights^T right; `right` is stored [row][d].
fn weigh(lane: u32, transposed: bool, so_far: Block) -> Block {
    var block = so_far;
    let c = 2u * (lane % 16u);
    let across = select(STRIDE, 1u, transposed);
    let along = select(1u, STRIDE, transposed);
    let first = 4u * (lane / 16u) * across;
    for (var j0 = 0u; j0 < TILE; j0 += 8u) {
        for (var i = 0u; i < 8u; i++) {
            let j = j0 + i;
            let at = first + j * along;
            let rows = vec4<f32>(
                weights[at],
                weights[at + across],
                weights[at + 2u * across],
                weights[at + 3u * across],
            );
            block.a += rows * right[j * STRIDE + c];
            block.b += rows * right[j * STRIDE + c + 1u];
        }
    }
    return block;
}

// q k^T of a tile.
fn scores(lane: u32, q0: u32, k0: u32, head: u32, kv_head: u32) -> Block {
    var block = Block(vec4<f32>(), vec4<f32>());
    for (var slice = 0u; slice < SLICES; slice++) {
        for (var i = 0u; i < LOADS; i++) {
            let row = (i * LANES + lane) / TILE;
            let d = lane % TILE;
            left[d * STRIDE + row] = q_at(q0 + row, head, slice * TILE + d);
            right[d * STRIDE + row] = k_at(k0 + row, kv_head, slice * TILE + d);
        }
        workgroupBarrier();
        block = multiply(lane, block);
        workgroupBarrier();
    }
    return block;
}

// Reads the spans of 32 rows into `bounds`; rows past the last have none.
fn load_bounds(lane: u32, row0: u32) {
    if (lane < TILE) {
        let row = row0 + lane;
        bounds[lane] = 0xffffffffu;
        bounds[TILE + lane] = 0u;
        if (row < p.rows) {
            bounds[lane] = spans[2u * row];
            bounds[TILE + lane] = spans[2u * row + 1u];
        }
    }
    workgroupBarrier();
}

// The first key row that any of the query rows in `bounds` sees.
fn first_key(lane: u32, q0: u32) -> u32 {
    if (lane == 0u) {
        bound = 0xffffffffu;
        for (var i = 0u; i < TILE && q0 + i < p.rows; i++) {
            bound = min(bound, first_seen(q0 + i, bounds[i]));
        }
    }
    return workgroupUniformLoad(&bound);
}
