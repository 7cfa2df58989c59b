// The products of pieces of k, f32 [pieces][m][n / 4 vectors, rounded up], to be added up in order: for few tiles and long k.
@group(0) @binding(3) var<storage, read_write> partial: array<vec4<f32>>;

fn begin_tile(m: u32, n: u32, lane: u32) {}

fn write_block(piece: u32, m: u32, n: u32, block: u32, writer: u32) {
    let width = (p.n + 3u) / 4u;
    for (var i = writer; i < ROWS * WIDTH; i += WRITERS) {
        let row = m + i / WIDTH;
        let column = n / 4u + i % WIDTH;
        if (row < p.m && column < width) {
            partial[(piece * p.m + row) * width + column] = sums_at(block, i / WIDTH, i % WIDTH);
        }
    }
}
