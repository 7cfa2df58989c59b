// dq = ds k; one workgroup per tile of 32 query rows of one head.
@group(0) @binding(7) var<storage, read_write> dq: array<u32>;

// Elements d and d + 1 of the head that begins at `base`.
fn store_dq(base: u32, d: u32, pair: vec2<f32>) {
    if (d >= HEAD_DIM) {
        return;
    }
    if (Y != F32) {
        dq[(base + d) >> 1u] = pack(Y, pair);
        return;
    }
    dq[base + d] = bitcast<u32>(pair.x);
    if (d + 1u < HEAD_DIM) {
        dq[base + d + 1u] = bitcast<u32>(pair.y);
    }
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
    load_bounds(lane, q0);
    let begin = first_key(lane, q0);
    let end = min(q0 + TILE, p.rows);
    var sums: array<Block, SLICES>;
    for (var k0 = begin; k0 < end; k0 += TILE) {
        let products = scores(lane, q0, k0, head, kv_head);
        let d_weight = d_weights(lane, q0, k0, head, kv_head);
        for (var i = 0u; i < 4u; i++) {
            let t = q0 + r + i;
            let start = bounds[r + i];
            weights[(r + i) * STRIDE + c] = element(products.a[i], d_weight.a[i], t, k0 + c, head, start).y;
            weights[(r + i) * STRIDE + c + 1u] =
                element(products.b[i], d_weight.b[i], t, k0 + c + 1u, head, start).y;
        }
        for (var slice = 0u; slice < SLICES; slice++) {
            for (var i = 0u; i < LOADS; i++) {
                let row = (i * LANES + lane) / TILE;
                let d = lane % TILE;
                right[row * STRIDE + d] = k_at(k0 + row, kv_head, slice * TILE + d);
            }
            workgroupBarrier();
            sums[slice] = weigh(lane, false, sums[slice]);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = q0 + r + i;
        if (row >= p.rows) {
            continue;
        }
        let base = (row * p.heads + head) * HEAD_DIM;
        for (var slice = 0u; slice < SLICES; slice++) {
            store_dq(base, slice * TILE + c, vec2<f32>(sums[slice].a[i], sums[slice].b[i]));
        }
    }
}
