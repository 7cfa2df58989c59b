// What kernels on matrix units share.

// The exponent of the power of two that brings a magnitude to 2^14, within what a factor may be; `of_zero` for 0.
fn exponent_for(magnitude: f32, of_zero: i32) -> i32 {
    if (magnitude == 0.0) {
        return of_zero;
    }
    return clamp(14 + 127 - i32(bitcast<u32>(magnitude) >> 23u), -126, 126);
}

fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// 1, or NaN if subgroups are not as expected: a compiler may choose their size for each kernel, or leave some of them
// partly empty, and the test that runs when a device is opened covers only some kernels. From its bits, as WGSL has no
// literal NaN.
fn one_if(expected: bool) -> f32 {
    return bitcast<f32>(select(0x7fc00000u, 0x3f800000u, expected));
}

// Rows of tiles with 40 f16 in a line, in an order in which neighbours lie in different banks of workgroup memory: 0, 4, 2, 6,
// 1, 5, 3, 7, and so on.
fn spread(row: u32) -> u32 {
    return row - row % 8u + 4u * (row % 2u) + 2u * (row / 2u % 2u) + row / 4u % 2u;
}
