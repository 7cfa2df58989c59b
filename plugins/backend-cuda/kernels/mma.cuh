// What kernels for tensor cores are made of, as PTX: no header of the toolkit is needed.
typedef unsigned int u32;
typedef unsigned short u16;

#ifdef __CUDA_ARCH__
// Dynamic shared memory, of as many bytes as the launch gives.
#define SHARED_MEMORY(bytes) extern __shared__ __align__(16) u16 memory[];

// d[16 x 8] += a[16 x 16] b[16 x 8], bf16 in, f32 out.
__device__ __forceinline__ void mma_bf16(float* d, const u32* a, const u32* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
    );
}

// Two numbers as bf16, to nearest, ties to even.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four fragments of 8 x 8 elements of 16 bits; each lane names a row.
__device__ __forceinline__ void ldmatrix4(u32* r, const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(shared_address(row)));
}
__device__ __forceinline__ void ldmatrix4t(u32* r, const u16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(shared_address(row)));
}

__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

// Copies 16 or 8 bytes while the thread continues, or zeros if there is nothing to copy.
__device__ __forceinline__ void copy16(void* shared, const void* global, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes));
}
__device__ __forceinline__ void copy8(void* shared, const void* global, bool valid) {
    int bytes = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes));
}
// Waits for the thread's own copies.
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.commit_group; cp.async.wait_group 0;" ::: "memory"); }
#endif
