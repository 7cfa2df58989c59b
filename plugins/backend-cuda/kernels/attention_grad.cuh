// What the gradients of attention share. A block of 8 warps owns 64 rows (keys for dk and dv, queries for dq) and goes
// over tiles of OTHER rows of the other kind, copying the next one at the same time. Warps w and w + 4 are a pair with
// two roles on the same 16 rows: role 0 makes the scores q.k and from them the probabilities, role 1 makes do.v. They
// exchange what the other needs, lane by lane, and continue with what lies in their registers: role 0 with dv and role
// 1 with dk, or each with one half of the columns of dq. No atomics: sums have a fixed order.
constexpr u32 OWN = 64, OTHER = TILE_ROWS, TILE = OTHER * STRIDE, THREADS = 256, COLS = OTHER / 8;
constexpr u32 EXCHANGE = 4 * COLS * 32 * 4;  // f32 of one direction: a float4 for each warp, 8 columns and lane
constexpr u32 TILES_BYTES = 2 * (2 * OWN * STRIDE + 4 * TILE);
// Dynamic shared memory of the two kernels.
constexpr u32 KV_BYTES = TILES_BYTES + 4 * EXCHANGE + 2 * OTHER * 16, Q_BYTES = TILES_BYTES + 2 * 4 * EXCHANGE;

// s[16 x OTHER] = x y^T, of 16 rows x.
__device__ __forceinline__ void multiply(float (*s)[4], const u16* x, const u16* y) {
    u32 lane = threadIdx.x % 32;
    x += lane % 16 * STRIDE + lane / 16 * 8;
    y += (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 d = 0; d < D; d += 16) {
        u32 a[4];
        ldmatrix4(a, x + d);
#pragma unroll
        for (u32 n = 0; n < OTHER / 16; n++) {
            u32 b[4];
            ldmatrix4(b, y + 16 * n * STRIDE + d);
            mma_bf16(s[2 * n], a, b);
            mma_bf16(s[2 * n + 1], a, b + 2);
        }
    }
}

// out[16 x 8 N] += s[16 x OTHER] y[OTHER x 8 N], s rounded to bf16.
template <u32 N> __device__ __forceinline__ void weigh(float (*out)[4], const float (*s)[4], const u16* y) {
    u32 lane = threadIdx.x % 32;
    y += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 n = 0; n < OTHER / 16; n++) {
        const float *l = s[2 * n], *r = s[2 * n + 1];
        u32 a[4] = {pack(l[0], l[1]), pack(l[2], l[3]), pack(r[0], r[1]), pack(r[2], r[3])};
#pragma unroll
        for (u32 d = 0; d < N / 2; d++) {
            u32 b[4];
            ldmatrix4t(b, y + 16 * n * STRIDE + 16 * d);
            mma_bf16(out[2 * d], a, b);
            mma_bf16(out[2 * d + 1], a, b + 2);
        }
    }
}

// Turns a product q.k into the slope: the probability times the derivative of the soft-cap, with the sign set if the
// probability was dropped. Returns the probability after dropout. Rows after the end are zeros, which give zeros.
__device__ __forceinline__ float probability(const Params& p, u32 key0, u32 key1, float& s, u32 row, u32 key, u32 start, float lse, u32 head) {
    float x = p.scale * s, bend = 1.0f;
    if (p.cap > 0) {
        float y = tanhf(x / p.cap);
        x = p.cap * y;
        bend = 1.0f - y * y;
    }
    bool sees = key >= start && key <= row && row - key < p.window;
    float e = sees ? expf(x - lse) : 0.0f;
    s = e * bend;
    if (p.threshold == 0) return e;
    bool dropped = philox(key0, key1, key, row, head, p.salt) < p.threshold;
    if (dropped) s = -s;
    return dropped ? 0.0f : p.keep * e;
}
// The gradient of a capped score, without the factor `scale`.
__device__ __forceinline__ float d_score(float slope, float d_probability, float delta, float keep) {
    bool dropped = __float_as_uint(slope) >> 31;
    return fabsf(slope) * ((dropped ? 0.0f : keep * d_probability) - delta);
}
__device__ __forceinline__ float4* slot(float* exchange, u32 n) { return (float4*)exchange + (threadIdx.x / 32 % 4 * COLS + n) * 32 + threadIdx.x % 32; }
