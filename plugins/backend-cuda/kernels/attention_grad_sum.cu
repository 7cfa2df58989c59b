// y = the sum over the parts, in order; a thread makes four elements.
extern "C" __global__ void __launch_bounds__(256) attention_grad_sum(
    const u32 fours, const u32 parts, const float* x, u16* y
) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= fours) return;
    float4 sum = ((const float4*)x)[i];
    for (u32 part = 1; part < parts; part++) {
        float4 more = ((const float4*)x)[(size_t)part * fours + i];
        sum.x += more.x;
        sum.y += more.y;
        sum.z += more.z;
        sum.w += more.w;
    }
    *(uint2*)(y + 4 * (size_t)i) = {pack(sum.x, sum.y), pack(sum.z, sum.w)};
}
