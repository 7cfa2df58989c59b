// g[i] = scale * sum over t of dy[t, r] x[t, c], index[i] = r * columns + c: the dense product (TN) in tiles, of which only
// the chosen elements are written. The elements [first, last) of index and g are bound.
@group(0) @binding(3) var<storage, read_write> index: array<u32>;
@group(0) @binding(4) var<storage, read_write> row_ptr: array<u32>;
@group(0) @binding(5) var<storage, read_write> g: array<f32>;

fn write_rows(piece: u32, m: u32, n: u32, lane: u32) {
    // Threads of a row.
    let crew = LANES / ROWS;
    let row = m + lane / crew;
    if (row >= p.m) {
        return;
    }
    var low = clamp(row_ptr[row], p.first, p.last);
    let end = clamp(row_ptr[row + 1u], p.first, p.last);
    let wanted = row * p.n + n;
    var high = end;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (index[middle - p.first] < wanted) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    for (var i = low - p.first + lane % crew; i < end - p.first; i += crew) {
        let column = index[i] - wanted;
        if (column >= TILE) {
            return;
        }
        let value = sums_at(lane / crew * WIDTH + column / 4u)[column % 4u];
        g[i] = select(0.0, g[i], p.accumulate == 1u) + p.scale * value;
    }
}
