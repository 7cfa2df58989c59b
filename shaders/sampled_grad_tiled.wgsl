// g[i] = scale * sum over t of dy[t, r] x[t, c], index[i] = r * columns + c: the dense product in 64 x 64 tiles of
// registers, of which only the chosen elements are written. The elements [first, last) of index and g are bound.
struct Params {
    rows: u32,
    out: u32,
    columns: u32,
    first: u32,
    last: u32,
    scale: f32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> dy: array<u32>;
@group(0) @binding(2) var<storage, read_write> x: array<u32>;
@group(0) @binding(3) var<storage, read_write> index: array<u32>;
@group(0) @binding(4) var<storage, read_write> row_ptr: array<u32>;
@group(0) @binding(5) var<storage, read_write> g: array<f32>;

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const STRIDE: u32 = TILE / 4u + 1u;

var<workgroup> dy_tile: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> x_tile: array<vec4<f32>, DEPTH * STRIDE>;

fn dy_at(t: u32, r: u32) -> f32 {
    if (t >= p.rows || r >= p.out) {
        return 0.0;
    }
    let i = t * p.out + r;
    return decode(DY, dy[word_of(DY, i)], i);
}

fn x_at(t: u32, c: u32) -> f32 {
    if (t >= p.rows || c >= p.columns) {
        return 0.0;
    }
    let i = t * p.columns + c;
    return decode(X, x[word_of(X, i)], i);
}

// Writes the chosen ones among the four elements of row r from column c on.
fn store(r: u32, c: u32, values: vec4<f32>) {
    if (r >= p.out || c >= p.columns) {
        return;
    }
    var low = clamp(row_ptr[r], p.first, p.last);
    let end = clamp(row_ptr[r + 1u], p.first, p.last);
    let wanted = r * p.columns + c;
    var high = end;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (index[middle - p.first] < wanted) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    for (; low < end; low++) {
        let offset = index[low - p.first] - wanted;
        if (offset >= 4u) {
            return;
        }
        let low_pair = select(values.x, values.y, offset == 1u);
        let high_pair = select(values.z, values.w, offset == 3u);
        let value = select(high_pair, low_pair, offset < 2u);
        let i = low - p.first;
        g[i] = select(0.0, g[i], p.accumulate == 1u) + p.scale * value;
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_r = (p.out + TILE - 1u) / TILE;
    let tile = linear_id(group, groups);
    let r0 = (tile % tiles_r) * TILE;
    let c0 = (tile / tiles_r) * TILE;
    if (c0 >= p.columns) {
        return;
    }
    let x_lane = lane % 16u;
    let y_lane = lane / 16u;
    var sums: array<vec4<f32>, 4>;
    for (var t0 = 0u; t0 < p.rows; t0 += DEPTH) {
        let t = t0 + y_lane;
        let r = r0 + 4u * x_lane;
        let c = c0 + 4u * x_lane;
        let at = y_lane * STRIDE + x_lane;
        dy_tile[at] = vec4<f32>(dy_at(t, r), dy_at(t, r + 1u), dy_at(t, r + 2u), dy_at(t, r + 3u));
        x_tile[at] = vec4<f32>(x_at(t, c), x_at(t, c + 1u), x_at(t, c + 2u), x_at(t, c + 3u));
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let rows = dy_tile[k * STRIDE + y_lane];
            let columns = x_tile[k * STRIDE + x_lane];
            sums[0] += rows.x * columns;
            sums[1] += rows.y * columns;
            sums[2] += rows.z * columns;
            sums[3] += rows.w * columns;
        }
        workgroupBarrier();
    }
    let c = c0 + 4u * x_lane;
    for (var i = 0u; i < 4u; i++) {
        store(r0 + 4u * y_lane + i, c, sums[i]);
    }
}
