// Runs CUDA C++ on a CPU: the threads of a block are fibers of one host thread that switch at barriers, so every run is
// deterministic. It finds what tools for GPUs find: barriers that not all threads reach (by line), races (results that
// depend on the order of blocks, warps and threads), shared memory that is read before it is written (poisoned for each
// block) or of which a launch gives too little, and with -fsanitize=address accesses out of bounds.
// Compiled with -nostdinc++: headers of the C++ library would take half of the compiler's time.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ __attribute__((section("cuda_shared"), aligned(16))) static
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct Dimensions { unsigned x, y, z; };
static Dimensions threadIdx, blockIdx, gridDim, blockDim;
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }

namespace shim {
constexpr unsigned MAX = 1024, STACK = 256 << 10;
// What a fiber waits for: nothing, its warp, its block.
enum Kind { READY, WARP, BLOCK, DONE };
struct Fiber { void* sp; Kind kind; int line; };
static Fiber fibers[MAX];
static void* main_sp;
static unsigned current;
static void (*body)(void*);
static void* body_argument;
static char message[256];
extern "C" void shim_switch(void** save, void* to);
asm(R"(
.text
.local shim_switch
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
inline void yield(Kind kind, int line) {
    fibers[current].kind = kind;
    fibers[current].line = line;
    shim_switch(&fibers[current].sp, main_sp);
}
static void entry() { body(body_argument); yield(DONE, 0); abort(); }
extern "C" char __start_cuda_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shared[] __attribute__((weak));

inline void run(unsigned i) {
    current = i;
    threadIdx = {i, 0, 0};
    shim_switch(&main_sp, fibers[i].sp);
}

// Whether all lanes of a warp are ready or stand at the same operation of the warp. Null, or what is wrong.
inline const char* warp_goes(unsigned first, unsigned end, bool& goes) {
    goes = true;
    for (unsigned i = first; i < end; i++)
        goes &= fibers[i].kind == READY || (fibers[i].kind == WARP && fibers[i].line == fibers[first].line);
    if (goes) return nullptr;
    for (unsigned i = first; i < end; i++) {
        if (fibers[i].kind != WARP) continue;
        for (unsigned j = first; j < end; j++) {
            if (fibers[j].kind == WARP && fibers[j].line == fibers[i].line) continue;
            snprintf(message, sizeof message, "block %u: lane %u is at the warp operation of line %d, lane %u is not",
                     blockIdx.x, i, fibers[i].line, j);
            return message;
        }
    }
    return nullptr;
}

// Null, or what is wrong.
inline const char* block(unsigned lanes, int order, char* stacks) {
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    for (unsigned i = 0; i < lanes; i++) {
        void** sp = (void**)(((uintptr_t)stacks + (i + 1) * size_t(STACK)) & ~uintptr_t(15));
        *--sp = nullptr;  // keeps the stack aligned as after a call
        *--sp = (void*)entry;
        for (int r = 0; r < 6; r++) *--sp = nullptr;
        fibers[i] = {sp, READY, 0};
    }
    unsigned warps = (lanes + 31) / 32;
    for (;;) {
        bool moved = false;
        for (unsigned n = 0; n < warps; n++) {
            unsigned first = 32 * (order == 1 ? warps - 1 - n : n), end = min(first + 32, lanes);
            // In orders other than the first, a warp keeps running until it waits for the block.
            for (bool again = true; again; again = order != 0) {
                bool goes;
                if (const char* wrong = warp_goes(first, end, goes)) return wrong;
                if (!goes) break;
                unsigned count = end - first;
                for (unsigned k = 0; k < count; k++)
                    run(order == 1 ? end - 1 - k : order == 2 ? first + (k * 7 + 3) % count : first + k);
                moved = true;
            }
        }
        if (moved) continue;
        unsigned live = 0;
        int line = 0;
        for (unsigned i = 0; i < lanes; i++)
            if (fibers[i].kind == BLOCK) { live++; line = fibers[i].line; }
        if (live == 0) return nullptr;
        for (unsigned i = 0; i < lanes; i++) {
            if (fibers[i].kind == DONE || fibers[i].line != line) {
                snprintf(message, sizeof message, "block %u: thread %u is not at the barrier of line %d", blockIdx.x, i, line);
                return message;
            }
            fibers[i].kind = READY;
        }
    }
}

template <size_t... I> struct Indices {};
template <class... A, size_t... I> inline void apply(void (*k)(A...), void** arguments, Indices<I...>) {
    k(*(A*)arguments[I]...);
}

// Blocks come from the last to the first in order 1.
template <class... A>
inline const char* launch(void (*k)(A...), const unsigned* grid, unsigned lanes, int order, void** arguments) {
    struct Call { void (*k)(A...); void** arguments; } call{k, arguments};
    body = [](void* p) { auto* c = (Call*)p; apply(c->k, c->arguments, Indices<__integer_pack(sizeof...(A))...>{}); };
    body_argument = &call;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {lanes, 1, 1};
    static char* stacks = (char*)mmap(nullptr, size_t(MAX) * STACK, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned n = 0; n < blocks; n++) {
        unsigned b = order == 1 ? blocks - 1 - n : n;
        blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        if (const char* wrong = block(lanes, order, stacks)) return wrong;
    }
    return nullptr;
}

// How many arguments a kernel has, and the bytes of each.
template <class... A> inline size_t sizes(void (*)(A...), const size_t** each) {
    static const size_t all[] = {sizeof(A)..., 0};
    *each = all;
    return sizeof...(A);
}

// Every lane of the warp gives one value and sees all.
template <class T> struct Exchange {
    static inline T slots[MAX];
    const T* all;
    Exchange(const T& mine, int line) { slots[current] = mine; yield(WARP, line); all = slots + (current & ~31u); }
    ~Exchange() { yield(WARP, -1); }  // no lane overwrites a slot before all have read
};

// Asynchronous copies: at once, or, in order 2, when the thread waits for them.
struct Copy { void* to; const void* from; bool valid; unsigned bytes; };
static bool late;
// Of a thread; grows, and is never freed.
struct Copies {
    Copy* all;
    size_t count, room;
    void push(const Copy& c) {
        if (count == room) all = (Copy*)realloc(all, (room = 2 * room + 8) * sizeof(Copy));
        all[count++] = c;
    }
};
static Copies copies[MAX];
inline void perform(const Copy& c) { if (c.valid) memcpy(c.to, c.from, c.bytes); else memset(c.to, 0, c.bytes); }
inline void copy(void* to, const void* from, bool valid, unsigned bytes) {
    if (uintptr_t(to) % bytes || uintptr_t(from) % bytes) {
        fprintf(stderr, "a copy of %u bytes is not aligned\n", bytes);
        abort();
    }
    Copy c{to, from, valid, bytes};
    if (late) copies[current].push(c); else perform(c);
}
inline void copies_done() {
    Copies& mine = copies[current];
    for (size_t i = 0; i < mine.count; i++) perform(mine.all[i]);
    mine.count = 0;
}
// Bytes of dynamic shared memory that a kernel uses.
static unsigned dynamic;
inline float bf16(unsigned bits) { return __uint_as_float(bits << 16); }
inline unsigned round_bf16(float x) {
    unsigned b = __float_as_uint(x);
    if (x != x) return (b >> 16) | 0x40u;
    return (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
}
}  // namespace shim

// mma.cuh as exchanges between fibers.
#define SHARED_MEMORY(bytes) __shared__ unsigned short memory[(bytes) / 2]; shim::dynamic = (bytes);
struct Frag { unsigned a[4], b[2]; };
inline void mma_bf16(float* d, const unsigned* a, const unsigned* b) {
    Frag f; memcpy(f.a, a, 16); memcpy(f.b, b, 8);
    shim::Exchange<Frag> x(f, __LINE__);
    unsigned lane = shim::current % 32, g = lane / 4, t = lane % 4;
    auto half = [](unsigned w, unsigned hi) { return shim::bf16(hi ? w >> 16 : w & 0xffff); };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + 8 * (i / 2), col = 2 * t + i % 2;
        float sum = d[i];
        for (unsigned k = 0; k < 16; k++) {
            // a: register (row / 8) + 2 (k / 8) of lane 4 (row % 8) + (k % 8) / 2; b: register k / 8 of lane 4 col + (k % 8) / 2.
            float av = half(x.all[4 * (row % 8) + (k % 8) / 2].a[row / 8 + 2 * (k / 8)], k % 2);
            float bv = half(x.all[4 * col + (k % 8) / 2].b[k / 8], k % 2);
            sum += av * bv;
        }
        d[i] = sum;
    }
}
inline unsigned pack(float lo, float hi) { return shim::round_bf16(lo) | shim::round_bf16(hi) << 16; }
inline void ldmatrix_(unsigned* r, const unsigned short* row, bool trans) {
    if (uintptr_t(row) % 16) {
        fprintf(stderr, "a row of ldmatrix is not aligned\n");
        abort();
    }
    shim::Exchange<const unsigned short*> x(row, trans ? 1000001 : 1000000);
    unsigned lane = shim::current % 32, g = lane / 4, t = lane % 4;
    for (unsigned m = 0; m < 4; m++) {
        auto at = [&](unsigned i, unsigned j) { return unsigned(trans ? x.all[8 * m + j][i] : x.all[8 * m + i][j]); };
        r[m] = at(g, 2 * t) | at(g, 2 * t + 1) << 16;
    }
}
inline void ldmatrix4(unsigned* r, const unsigned short* row) { ldmatrix_(r, row, false); }
inline void ldmatrix4t(unsigned* r, const unsigned short* row) { ldmatrix_(r, row, true); }
inline float shuffle_xor(float v, int mask) { shim::Exchange<float> x(v, 1000002); return x.all[(shim::current % 32) ^ mask]; }
inline void copy16(void* shared, const void* global, bool valid) { shim::copy(shared, global, valid, 16); }
inline void copy8(void* shared, const void* global, bool valid) { shim::copy(shared, global, valid, 8); }
inline void copies_done() { shim::copies_done(); }

#define __syncthreads() shim::yield(shim::BLOCK, __LINE__)
#define SHIM_EXPORT(kernel) \
    extern "C" size_t argument_sizes(const size_t** each) { return shim::sizes(kernel, each); } \
    extern "C" const char* emulate(const unsigned* grid, const unsigned* threads, int order, void** arguments) { \
        shim::late = order == 2; \
        const char* wrong = shim::launch(kernel, grid, threads[0], order, arguments); \
        return wrong || shim::dynamic <= threads[1] ? wrong : "it is launched with too little shared memory"; \
    }
