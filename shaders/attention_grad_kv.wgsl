// dk = ds^T q, dv = p^T do, for each query head on its own: [rows, heads, head_dim]. One workgroup per tile of 32 key
// rows of one query head.
@group(0) @binding(7) var<storage, read_write> dk: array<u32>;
@group(0) @binding(8) var<storage, read_write> dv: array<u32>;

// Elements d and d + 1 of the head that begins at `base`.
fn store_dk(base: u32, d: u32, pair: vec2<f32>) {
    if (d >= HEAD_DIM) {
        return;
    }
    if (Y != F32) {
        dk[(base + d) >> 1u] = pack(Y, pair);
        return;
    }
    dk[base + d] = bitcast<u32>(pair.x);
    if (d + 1u < HEAD_DIM) {
        dk[base + d + 1u] = bitcast<u32>(pair.y);
    }
}

// Elements d and d + 1 of the head that begins at `base`.
fn store_dv(base: u32, d: u32, pair: vec2<f32>) {
    if (d >= HEAD_DIM) {
        return;
    }
    if (Y != F32) {
        dv[(base + d) >> 1u] = pack(Y, pair);
        return;
    }
    dv[base + d] = bitcast<u32>(pair.x);
    if (d + 1u < HEAD_DIM) {
        dv[base + d + 1u] = bitcast<u32>(pair.y);
    }
}

// The row after the last query row that sees any of the key rows from k0 on.
fn end_query(lane: u32, k0: u32) -> u32 {
    load_bounds(lane, k0);
    if (lane == 0u) {
        bound = 0u;
        for (var i = 0u; i < TILE && k0 + i < p.rows; i++) {
            bound = max(bound, end_of_seeing(k0 + i, bounds[TILE + i]));
        }
        bound = min(bound, p.rows);
    }
    return workgroupUniformLoad(&bound);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_id(group, groups);
    let head = id % p.heads;
    let k0 = (id / p.heads) * TILE;
    if (k0 >= p.rows) {
        return;
    }
    let kv_head = head / (p.heads / p.kv_heads);
    let r = 4u * (lane / 16u);
    let c = 2u * (lane % 16u);
    let end = end_query(lane, k0);
    var dk_sums: array<Block, SLICES>;
    var dv_sums: array<Block, SLICES>;
    for (var q0 = k0; q0 < end; q0 += TILE) {
        let products = scores(lane, q0, k0, head, kv_head);
        let d_weight = d_weights(lane, q0, k0, head, kv_head);
        load_bounds(lane, q0);
        // Of rows r + i: the gradients of the scores at columns c and c + 1.
        var ds: array<vec2<f32>, 4>;
        for (var i = 0u; i < 4u; i++) {
            let t = q0 + r + i;
            let start = bounds[r + i];
            let near = element(products.a[i], d_weight.a[i], t, k0 + c, head, start);
            let far = element(products.b[i], d_weight.b[i], t, k0 + c + 1u, head, start);
            weights[(r + i) * STRIDE + c] = near.x;
            weights[(r + i) * STRIDE + c + 1u] = far.x;
            ds[i] = vec2<f32>(near.y, far.y);
        }
        for (var slice = 0u; slice < SLICES; slice++) {
            for (var i = 0u; i < LOADS; i++) {
                let row = (i * LANES + lane) / TILE;
                let d = lane % TILE;
                right[row * STRIDE + d] = d_o_at(q0 + row, head, slice * TILE + d);
            }
            workgroupBarrier();
            dv_sums[slice] = weigh(lane, true, dv_sums[slice]);
            workgroupBarrier();
        }
        for (var i = 0u; i < 4u; i++) {
            weights[(r + i) * STRIDE + c] = ds[i].x;
            weights[(r + i) * STRIDE + c + 1u] = ds[i].y;
        }
        for (var slice = 0u; slice < SLICES; slice++) {
            for (var i = 0u; i < LOADS; i++) {
                let row = (i * LANES + lane) / TILE;
                let d = lane % TILE;
                right[row * STRIDE + d] = q_at(q0 + row, head, slice * TILE + d);
            }
            workgroupBarrier();
            dk_sums[slice] = weigh(lane, true, dk_sums[slice]);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = k0 + r + i;
        if (row >= p.rows) {
            continue;
        }
        let base = (row * p.heads + head) * HEAD_DIM;
        for (var slice = 0u; slice < SLICES; slice++) {
            let d = slice * TILE + c;
            store_dk(base, d, vec2<f32>(dk_sums[slice].a[i], dk_sums[slice].b[i]));
            store_dv(base, d, vec2<f32>(dv_sums[slice].a[i], dv_sums[slice].b[i]));
        }
    }
}
