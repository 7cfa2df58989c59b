// c = scale * op(a) op(b) + bias + residual, for ranges of rows and columns of the operands.
fn begin_rows(m: u32, n: u32, lane: u32) {}

fn write_rows(piece: u32, m: u32, n: u32, lane: u32) {
    for (var i = lane; i < ROWS * WIDTH; i += LANES) {
        put(m + i / WIDTH, n + 4u * (i % WIDTH), sums_at(i));
    }
}
