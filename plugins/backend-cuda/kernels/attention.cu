// Attention. A block of 4 warps makes 64 query rows of one head; a warp owns 16 of them.
constexpr u32 TQ = 64, TK = TILE_ROWS;

extern "C" __global__ void __launch_bounds__(128) attention(
    const Params p, const u32* rng, const u16* q, const u16* k, const u16* v, const u32* spans, u16* o, float* lse
) {
    SHARED_MEMORY(2 * (TQ + 2 * TK) * STRIDE)
    u16 *qs = memory, *ks = memory + TQ * STRIDE, *vs = ks + TK * STRIDE;
    u32 head = blockIdx.x % p.heads, q0 = blockIdx.x / p.heads * TQ, kv_head = head / (p.heads / p.kv_heads);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    u32 rows[2] = {q0 + 16 * warp + g, q0 + 16 * warp + g + 8};
    u32 start[2];
    for (int i = 0; i < 2; i++) start[i] = rows[i] < p.rows ? spans[2 * rows[i]] : ~0u;
    u32 key0 = p.threshold ? rng[0] : 0, key1 = p.threshold ? rng[1] : 0;
    u32 begin = first_key(p, spans, q0) / TK * TK, end = q0 + TQ < p.rows ? q0 + TQ : p.rows;

    load_tile<128>(qs, q, q0, TQ, p.rows, p.heads, head);
    float out[D / 8][4] = {}, largest[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
    for (u32 k0 = begin; k0 < end; k0 += TK) {
        __syncthreads();
        load_tile<128>(ks, k, k0, TK, p.rows, p.kv_heads, kv_head);
        load_tile<128>(vs, v, k0, TK, p.rows, p.kv_heads, kv_head);
        copies_done();
        __syncthreads();
        float s[TK / 8][4] = {};
#pragma unroll
        for (u32 d = 0; d < D; d += 16) {
            u32 a[4];
            ldmatrix4(a, qs + (16 * warp + lane % 16) * STRIDE + d + lane / 16 * 8);
#pragma unroll
            for (u32 n = 0; n < TK / 16; n++) {
                u32 b[4];
                ldmatrix4(b, ks + (16 * n + lane % 8 + lane / 16 * 8) * STRIDE + d + lane / 8 % 2 * 8);
                mma_bf16(s[2 * n], a, b);
                mma_bf16(s[2 * n + 1], a, b + 2);
            }
        }
        float before[2] = {largest[0], largest[1]};
#pragma unroll
        for (u32 n = 0; n < TK / 8; n++)
            for (u32 i = 0; i < 4; i++) {
                u32 r = i / 2, row = rows[r], key = k0 + 8 * n + 2 * t + i % 2;
                float x = p.scale * s[n][i];
                if (p.cap > 0) x = p.cap * tanhf(x / p.cap);
                bool sees = row < p.rows && key >= start[r] && key <= row && row - key < p.window;
                s[n][i] = sees ? x : -1e30f;
                largest[r] = fmaxf(largest[r], s[n][i]);
            }
        float factor[2];
        for (u32 r = 0; r < 2; r++) {
            largest[r] = fmaxf(largest[r], shuffle_xor(largest[r], 1));
            largest[r] = fmaxf(largest[r], shuffle_xor(largest[r], 2));
            factor[r] = expf(before[r] - largest[r]);
            sum[r] *= factor[r];
        }
        u32 probabilities[TK / 16][4];
#pragma unroll
        for (u32 n = 0; n < TK / 8; n++) {
            for (u32 i = 0; i < 4; i++) {
                // Not the other way around: NaN stays NaN.
                float e = s[n][i] < -1e29f ? 0.0f : expf(s[n][i] - largest[i / 2]);
                sum[i / 2] += e;
                u32 key = k0 + 8 * n + 2 * t + i % 2;
                if (p.threshold) e = philox(key0, key1, key, rows[i / 2], head, p.salt) < p.threshold ? 0.0f : p.keep * e;
                s[n][i] = e;
            }
            probabilities[n / 2][n % 2 * 2] = pack(s[n][0], s[n][1]);
            probabilities[n / 2][n % 2 * 2 + 1] = pack(s[n][2], s[n][3]);
        }
#pragma unroll
        for (u32 d = 0; d < D / 16; d++) {
            for (u32 j = 0; j < 2; j++)
                for (u32 i = 0; i < 4; i++) out[2 * d + j][i] *= factor[i / 2];
#pragma unroll
            for (u32 n = 0; n < TK / 16; n++) {
                u32 b[4];
                ldmatrix4t(b, vs + (16 * n + lane % 16) * STRIDE + 16 * d + lane / 16 * 8);
                mma_bf16(out[2 * d], probabilities[n], b);
                mma_bf16(out[2 * d + 1], probabilities[n], b + 2);
            }
        }
    }
    for (u32 r = 0; r < 2; r++) {
        sum[r] += shuffle_xor(sum[r], 1);
        sum[r] += shuffle_xor(sum[r], 2);
    }
    for (u32 r = 0; r < 2; r++) {
        if (rows[r] >= p.rows) continue;
        float inverse = 1.0f / sum[r];
        u32* to = (u32*)(o + ((size_t)rows[r] * p.heads + head) * D);
#pragma unroll
        for (u32 d = 0; d < D / 8; d++) to[4 * d + t] = pack(out[d][2 * r] * inverse, out[d][2 * r + 1] * inverse);
        if (t == 0) lse[rows[r] * p.heads + head] = largest[r] + logf(sum[r]);
    }
}
