// What the two gradient kernels of attention share; after attention_tile.
@group(0) @binding(5) var<storage, read_write> d_o: array<u32>;
@group(0) @binding(6) var<storage, read_write> ld: array<f32>;

fn d_o_at(row: u32, head: u32, d: u32) -> f32 {
    if (row >= p.rows || d >= HEAD_DIM) {
        return 0.0;
    }
    let i = (row * p.heads + head) * HEAD_DIM + d;
    return decode(X, d_o[word_of(X, i)], i);
}

// do v^T of a tile.
fn d_weights(lane: u32, q0: u32, k0: u32, head: u32, kv_head: u32) -> Block {
    var block = Block(vec4<f32>(), vec4<f32>());
    for (var slice = 0u; slice < SLICES; slice++) {
        for (var i = 0u; i < LOADS; i++) {
            let row = (i * LANES + lane) / TILE;
            let d = lane % TILE;
            left[d * STRIDE + row] = d_o_at(q0 + row, head, slice * TILE + d);
            right[d * STRIDE + row] = v_at(k0 + row, kv_head, slice * TILE + d);
        }
        workgroupBarrier();
        block = multiply(lane, block);
        workgroupBarrier();
    }
    return block;
}

// (probability with dropout, gradient of the unscaled score) of one element, from its products q.k and do.v.
fn element(product: f32, d_weight: f32, t: u32, j: u32, head: u32, start: u32) -> vec2<f32> {
    if (!sees(t, j, start)) {
        return vec2<f32>();
    }
    let row = 2u * (t * p.heads + head);
    let s = score(product);
    let probability = exp(s - ld[row]);
    let mask = kept(j, t, head);
    let ds = p.scale * probability * (mask * d_weight - ld[row + 1u]) * slope(s);
    return vec2<f32>(mask * probability, ds);
}
