// o = softmax(score(q k^T)) v with an online softmax over key tiles (Dao et al. 2022); one workgroup per tile of 32
// query rows of one head. Keeps the log-sum-exp.
@group(0) @binding(5) var<storage, read_write> o: array<u32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

// Elements d and d + 1 of the head that begins at `base`.
fn store_o(base: u32, d: u32, pair: vec2<f32>) {
    if (d >= HEAD_DIM) {
        return;
    }
    if (Y != F32) {
        o[(base + d) >> 1u] = pack(Y, pair);
        return;
    }
    o[base + d] = bitcast<u32>(pair.x);
    if (d + 1u < HEAD_DIM) {
        o[base + d + 1u] = bitcast<u32>(pair.y);
    }
}

var<workgroup> row_max: array<f32, TILE>;
var<workgroup> row_sum: array<f32, TILE>;
var<workgroup> row_scale: array<f32, TILE>;
var<workgroup> quarter_max: array<f32, LANES>;
var<workgroup> quarter_sum: array<f32, LANES>;

fn masked(product: f32, t: u32, j: u32, start: u32) -> f32 {
    return select(UNSEEN, score(product), sees(t, j, start));
}

// Turns the scores in `weights` into exp(score - row maximum), with dropout; four threads per row.
fn softmax(lane: u32, q0: u32, k0: u32, head: u32) {
    let row = lane / 4u;
    let at = row * STRIDE + 8u * (lane % 4u);
    var largest = UNSEEN;
    for (var i = 0u; i < 8u; i++) {
        largest = max(largest, weights[at + i]);
    }
    quarter_max[lane] = largest;
    workgroupBarrier();
    let first = lane - lane % 4u;
    let before = row_max[row];
    for (var i = 0u; i < 4u; i++) {
        largest = max(largest, quarter_max[first + i]);
    }
    largest = max(largest, before);
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let s = weights[at + i];
        var e = 0.0;
        // By its bits: a NaN is seen.
        if (bitcast<u32>(s) != bitcast<u32>(UNSEEN)) {
            e = exp(s - largest);
            sum += e;
            e *= kept(k0 + 8u * (lane % 4u) + i, q0 + row, head);
        }
        weights[at + i] = e;
    }
    quarter_sum[lane] = sum;
    workgroupBarrier();
    if (lane % 4u == 0u) {
        let factor = select(exp(before - largest), 0.0, before <= UNSEEN);
        row_scale[row] = factor;
        row_max[row] = largest;
        row_sum[row] = row_sum[row] * factor + quarter_sum[lane] + quarter_sum[lane + 1u] + quarter_sum[lane + 2u]
            + quarter_sum[lane + 3u];
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    let head = id % p.heads;
    let q0 = (id / p.heads) * TILE;
    if (q0 >= p.rows) {
        return;
    }
    let kv_head = head / (p.heads / p.kv_heads);
    let r = 4u * (lane / 16u);
    let c = 2u * (lane % 16u);
    if (lane < TILE) {
        row_max[lane] = UNSEEN;
        row_sum[lane] = 0.0;
    }
    load_bounds(lane, q0);
    let begin = first_key(lane, q0);
    let end = min(q0 + TILE, p.rows);
    var sums: array<Block, SLICES>;
    for (var k0 = begin; k0 < end; k0 += TILE) {
        let block = scores(lane, q0, k0, head, kv_head);
        for (var i = 0u; i < 4u; i++) {
            let t = q0 + r + i;
            let start = bounds[r + i];
            weights[(r + i) * STRIDE + c] = masked(block.a[i], t, k0 + c, start);
            weights[(r + i) * STRIDE + c + 1u] = masked(block.b[i], t, k0 + c + 1u, start);
        }
        workgroupBarrier();
        softmax(lane, q0, k0, head);
        let factors = vec4<f32>(row_scale[r], row_scale[r + 1u], row_scale[r + 2u], row_scale[r + 3u]);
        for (var slice = 0u; slice < SLICES; slice++) {
            for (var i = 0u; i < LOADS; i++) {
                let row = (i * LANES + lane) / TILE;
                let d = lane % TILE;
                right[row * STRIDE + d] = v_at(k0 + row, kv_head, slice * TILE + d);
            }
            workgroupBarrier();
            let so_far = Block(factors * sums[slice].a, factors * sums[slice].b);
            sums[slice] = weigh(lane, false, so_far);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = q0 + r + i;
        if (row >= p.rows) {
            continue;
        }
        let sum = row_sum[r + i];
        let inverse = select(1.0 / sum, 0.0, sum == 0.0);
        let base = (row * p.heads + head) * HEAD_DIM;
        for (var slice = 0u; slice < SLICES; slice++) {
            store_o(base, slice * TILE + c, inverse * vec2<f32>(sums[slice].a[i], sums[slice].b[i]));
        }
        if (c == 0u) {
            lse[row * p.heads + head] = row_max[r + i] + log(sum);
        }
    }
}
