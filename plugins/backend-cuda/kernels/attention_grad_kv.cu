// dk and dv of 64 keys, over the query heads of one part of the group, in order. With one part into dk and dv, else
// into f32 [parts, rows, kv_heads, D].
extern "C" __global__ void __launch_bounds__(THREADS) attention_grad_kv(
    const Params p, const u32 parts, const u32* rng, const u16* q, const u16* k, const u16* v, const u16* d_o,
    const float* ld, const u32* spans, u16* dk, u16* dv, float* dk_parts, float* dv_parts
) {
    SHARED_MEMORY(KV_BYTES)
    u16 *own = memory, *others = own + 2 * OWN * STRIDE;
    float* exchange = (float*)(others + 4 * TILE);
    u32* columns = (u32*)(exchange + EXCHANGE);   // per query row: log-sum-exp, delta, first key, end
    u32 part = blockIdx.x % parts, kv_head = blockIdx.x / parts % p.kv_heads, k0 = blockIdx.x / parts / p.kv_heads * OWN;
    u32 heads = p.heads / p.kv_heads / parts, head0 = (kv_head * parts + part) * heads;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, role = threadIdx.x / 128, g = lane / 4, t = lane % 4;
    u32 key0 = p.threshold ? rng[0] : 0, key1 = p.threshold ? rng[1] : 0;
    // The end of the query rows that see a key of the tile: segments ascend, so it is the end for the last key. Spans
    // are data, and are clamped.
    u32 last = (k0 + OWN < p.rows ? k0 + OWN : p.rows) - 1, end = min(max(spans[2 * last + 1], last + 1), p.rows);
    if (p.window < end - last) end = last + p.window;
    u32 tiles = (end - k0 + OTHER - 1) / OTHER;
    auto load = [&](u32 i) {
        u32 head = head0 + i / tiles, q0 = k0 + i % tiles * OTHER;
        u16* to = others + i % 2 * 2 * TILE;
        load_tile<THREADS>(to, q, q0, OTHER, p.rows, p.heads, head);
        load_tile<THREADS>(to + TILE, d_o, q0, OTHER, p.rows, p.heads, head);
        if (threadIdx.x < OTHER) {
            u32 row = q0 + threadIdx.x;
            bool in = row < p.rows;
            if (!in) row = 0;
            copy8(columns + (i % 2 * OTHER + threadIdx.x) * 4, ld + 2 * ((size_t)row * p.heads + head), in);
            copy8(columns + (i % 2 * OTHER + threadIdx.x) * 4 + 2, spans + 2 * row, in);
        }
    };
    load_tile<THREADS>(own, k, k0, OWN, p.rows, p.kv_heads, kv_head);
    load_tile<THREADS>(own + OWN * STRIDE, v, k0, OWN, p.rows, p.kv_heads, kv_head);
    load(0);
    float out[D / 8][4] = {};
    for (u32 i = 0; i < tiles * heads; i++) {
        copies_done();
        __syncthreads();
        if (i + 1 < tiles * heads) load(i + 1);
        u32 head = head0 + i / tiles, q0 = k0 + i % tiles * OTHER;
        const u16* y = others + i % 2 * 2 * TILE;
        const u32* column = columns + (i % 2 * OTHER + 2 * t) * 4;
        float s[COLS][4] = {};
        multiply(s, own + (role * OWN + 16 * warp) * STRIDE, y + role * TILE);
        if (role == 0) {
#pragma unroll
            for (u32 n = 0; n < COLS; n++) {
                float kept[4];
                for (u32 e = 0; e < 4; e++) {
                    const u32* c = column + (8 * n + e % 2) * 4;
                    kept[e] = probability(p, key0, key1, s[n][e], q0 + 8 * n + 2 * t + e % 2, k0 + 16 * warp + g + e / 2 * 8, c[2], __uint_as_float(c[0]), head);
                }
                *slot(exchange, n) = {s[n][0], s[n][1], s[n][2], s[n][3]};
                for (u32 e = 0; e < 4; e++) s[n][e] = kept[e];
            }
        }
        __syncthreads();
        if (role == 1) {
#pragma unroll
            for (u32 n = 0; n < COLS; n++) {
                float4 slope = *slot(exchange, n);
                float even = __uint_as_float(column[8 * n * 4 + 1]), odd = __uint_as_float(column[(8 * n + 1) * 4 + 1]);
                s[n][0] = d_score(slope.x, s[n][0], even, p.keep);
                s[n][1] = d_score(slope.y, s[n][1], odd, p.keep);
                s[n][2] = d_score(slope.z, s[n][2], even, p.keep);
                s[n][3] = d_score(slope.w, s[n][3], odd, p.keep);
            }
        }
        weigh<D / 8>(out, s, y + (1 - role) * TILE);
    }
    float factor = role ? p.scale : 1.0f;
    for (u32 r = 0; r < 2; r++) {
        u32 row = k0 + 16 * warp + g + 8 * r;
        if (row >= p.rows) continue;
        size_t at = ((size_t)row * p.kv_heads + kv_head) * D + 2 * t;
        if (parts == 1) {
            u16* to = (role ? dk : dv) + at;
#pragma unroll
            for (u32 d = 0; d < D / 8; d++) *(u32*)(to + 8 * d) = pack(factor * out[d][2 * r], factor * out[d][2 * r + 1]);
        } else {
            float* to = (role ? dk_parts : dv_parts) + (size_t)part * p.rows * p.kv_heads * D + at;
#pragma unroll
            for (u32 d = 0; d < D / 8; d++) *(float2*)(to + 8 * d) = {factor * out[d][2 * r], factor * out[d][2 * r + 1]};
        }
    }
}
