// c = scale * op(a) op(b) + bias + residual, for ranges of rows and columns of the operands.
fn begin_tile(m: u32, n: u32, lane: u32) {}

// Writes a thread's share of the block at row m and column n, which workgroup memory holds from vector `block` on.
fn write_block(piece: u32, m: u32, n: u32, block: u32, writer: u32) {
    for (var i = writer; i < ROWS * WIDTH; i += WRITERS) {
        put(m + i / WIDTH, n + 4u * (i % WIDTH), sums_at(block, i / WIDTH, i % WIDTH));
    }
}
