// What the kernels of attention share: bf16 operands, f32 sums, in segments of a packed batch. Segments ascend.
struct Params {
    u32 rows, heads, kv_heads, window, salt;
    // A draw below the threshold drops; what stays is multiplied by `keep`.
    u32 threshold;
    float keep, scale, cap;
};
constexpr u32 D = HEAD_DIM, STRIDE = D + 8;

// Copies `count` rows of a head from row0 on; rows after the end are zeros.
template <u32 THREADS>
__device__ __forceinline__ void load_tile(u16* tile, const u16* from, u32 row0, u32 count, u32 rows, u32 heads, u32 head) {
    for (u32 i = threadIdx.x; i < count * (D / 8); i += THREADS) {
        u32 r = i / (D / 8), c = i % (D / 8) * 8, row = row0 + r;
        bool in = row < rows;
        copy16(tile + r * STRIDE + c, from + ((size_t)(in ? row : 0) * heads + head) * D + c, in);
    }
}

// The first key that the tile of queries from q0 on sees: that of its first row, and the window's.
__device__ __forceinline__ u32 first_key(const Params& p, const u32* spans, u32 q0) {
    u32 begin = spans[2 * q0];
    return q0 >= p.window && q0 + 1 - p.window > begin ? q0 + 1 - p.window : begin;
}

// The first word of Philox 4x32-10.
__device__ __forceinline__ u32 philox(u32 k0, u32 k1, u32 c0, u32 c1, u32 c2, u32 c3) {
    for (u32 round = 0; round < 10; round++) {
        unsigned long long a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c1 = u32(b);
        c3 = u32(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}
