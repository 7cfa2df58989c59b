// The chosen elements of rows of a dense matrix: g[i] = rows[index[i]] for the i of the rows `first .. first + count`, of
// which `rows` holds `columns` elements each. Elements that no row claims stay as they are.
typedef unsigned int u32;

struct Params {
    u32 first, count, columns, chosen;
};

extern "C" __global__ void __launch_bounds__(256) sampled_gather(
    const Params p, const float* rows, const u32* row_ptr, const u32* index, float* g
) {
    // Numbers from data are checked against the tensors.
    const u32 end = min(row_ptr[p.first + p.count], p.chosen);
    const u32 base = p.first * p.columns;
    const u32 most = p.count * p.columns;
    const u32 step = gridDim.x * blockDim.x;
    for (u32 i = row_ptr[p.first] + blockIdx.x * blockDim.x + threadIdx.x; i < end; i += step) {
        const u32 at = index[i] - base;
        if (at < most) g[i] = rows[at];
    }
}
