// Comes before the kernels of matrix products, c [m, n] = scale * op(a) op(b): ranges of rows and columns of the operands.
struct Params {
    m: u32,
    n: u32,
    k: u32,
    // Elements from one stored row to the next.
    a_stride: u32,
    b_stride: u32,
    c_stride: u32,
    // First column of the range in a, and in c (and residual and bias).
    a_column: u32,
    c_column: u32,
    scale: f32,
    // Add to what the result holds (in place of bias and residual).
    accumulate: u32,
    // k is cut into this many pieces, of this length, which are summed separately.
    pieces: u32,
    piece: u32,
    // Sampled gradients: the chosen elements that are bound.
    first: u32,
    last: u32,
    // Products on matrix units: the number of magnitudes of each operand.
    a_magnitudes: u32,
    b_magnitudes: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
