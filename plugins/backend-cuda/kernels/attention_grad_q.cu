// dq of 64 query rows of one head.
extern "C" __global__ void __launch_bounds__(THREADS) attention_grad_q(
    const Params p, const u32* rng, const u16* q, const u16* k, const u16* v, const u16* d_o, const float* ld,
    const u32* spans, u16* dq
) {
    SHARED_MEMORY(Q_BYTES)
    u16 *own = memory, *others = own + 2 * OWN * STRIDE;
    float* exchange = (float*)(others + 4 * TILE);
    u32 head = blockIdx.x % p.heads, q0 = blockIdx.x / p.heads * OWN, kv_head = head / (p.heads / p.kv_heads);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, role = threadIdx.x / 128, g = lane / 4, t = lane % 4;
    u32 key0 = p.threshold ? rng[0] : 0, key1 = p.threshold ? rng[1] : 0;
    u32 rows[2], start[2];
    float lse[2], delta[2];
    for (u32 r = 0; r < 2; r++) {
        rows[r] = q0 + 16 * warp + g + 8 * r;
        u32 row = rows[r] < p.rows ? rows[r] : 0;
        start[r] = spans[2 * row];
        lse[r] = ld[2 * ((size_t)row * p.heads + head)];
        delta[r] = ld[2 * ((size_t)row * p.heads + head) + 1];
    }
    u32 begin = first_key(p, spans, q0) / OTHER * OTHER, end = q0 + OWN < p.rows ? q0 + OWN : p.rows;
    auto load = [&](u32 k0) {
        u16* to = others + (k0 / OTHER) % 2 * 2 * TILE;
        load_tile<THREADS>(to, k, k0, OTHER, p.rows, p.kv_heads, kv_head);
        load_tile<THREADS>(to + TILE, v, k0, OTHER, p.rows, p.kv_heads, kv_head);
    };
    load_tile<THREADS>(own, q, q0, OWN, p.rows, p.heads, head);
    load_tile<THREADS>(own + OWN * STRIDE, d_o, q0, OWN, p.rows, p.heads, head);
    load(begin);
    float out[D / 16][4] = {};
    for (u32 k0 = begin; k0 < end; k0 += OTHER) {
        copies_done();
        __syncthreads();
        if (k0 + OTHER < end) load(k0 + OTHER);
        const u16* y = others + (k0 / OTHER) % 2 * 2 * TILE;
        float s[COLS][4] = {};
        multiply(s, own + (role * OWN + 16 * warp) * STRIDE, y + role * TILE);
        if (role == 0) {
#pragma unroll
            for (u32 n = 0; n < COLS; n++)
                for (u32 e = 0; e < 4; e++) probability(p, key0, key1, s[n][e], rows[e / 2], k0 + 8 * n + 2 * t + e % 2, start[e / 2], lse[e / 2], head);
        }
#pragma unroll
        for (u32 n = 0; n < COLS; n++) *slot(exchange + role * EXCHANGE, n) = {s[n][0], s[n][1], s[n][2], s[n][3]};
        __syncthreads();
#pragma unroll
        for (u32 n = 0; n < COLS; n++) {
            float4 theirs = *slot(exchange + (1 - role) * EXCHANGE, n);
            float there[4] = {theirs.x, theirs.y, theirs.z, theirs.w};
            for (u32 e = 0; e < 4; e++) s[n][e] = d_score(role ? there[e] : s[n][e], role ? s[n][e] : there[e], delta[e / 2], p.keep);
        }
        weigh<D / 16>(out, s, y + role * (D / 2));
    }
    for (u32 r = 0; r < 2; r++) {
        if (rows[r] >= p.rows) continue;
        u16* to = dq + ((size_t)rows[r] * p.heads + head) * D + role * (D / 2) + 2 * t;
#pragma unroll
        for (u32 d = 0; d < D / 16; d++) *(u32*)(to + 8 * d) = pack(p.scale * out[d][2 * r], p.scale * out[d][2 * r + 1]);
    }
}
