// g[i] = scale * sum over t of dy[t, r] x[t, c], index[i] = r * columns + c: the dense product (TN) in tiles, of which only
// the chosen elements are written. The elements [first, last) of index and g are bound.
@group(0) @binding(3) var<storage, read_write> index: array<u32>;
@group(0) @binding(4) var<storage, read_write> row_ptr: array<u32>;
@group(0) @binding(5) var<storage, read_write> g: array<f32>;

// The first chosen element of a row that lies in column n or after it.
fn search(row: u32, n: u32) -> u32 {
    var low = clamp(row_ptr[row], p.first, p.last);
    var high = clamp(row_ptr[row + 1u], p.first, p.last);
    while (low < high) {
        let middle = (low + high) / 2u;
        if (index[middle - p.first] < row * p.n + n) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

{% if UNITS -%}
// Of each row of the tile, all searched at a time: each step of a search waits for memory.
var<workgroup> found: array<u32, TILE>;

fn begin_rows(m: u32, n: u32, lane: u32) {
    for (var row = m + lane; row < min(m + TILE, p.m); row += LANES) {
        found[row - m] = search(row, n);
    }
}

fn first_chosen(row: u32, n: u32) -> u32 {
    return found[row % TILE];
}
{%- else -%}
// There is no workgroup memory left to remember them.
fn begin_rows(m: u32, n: u32, lane: u32) {}

fn first_chosen(row: u32, n: u32) -> u32 {
    return search(row, n);
}
{%- endif %}

fn write_rows(piece: u32, m: u32, n: u32, lane: u32) {
    // Threads of a row.
    let crew = LANES / ROWS;
    let row = m + lane / crew;
    if (row >= p.m) {
        return;
    }
    let end = clamp(row_ptr[row + 1u], p.first, p.last);
    for (var i = first_chosen(row, n) + lane % crew; i < end; i += crew) {
        let at = i - p.first;
        let column = index[at] - row * p.n - n;
        if (column >= TILE) {
            return;
        }
        let value = sums_at(lane / crew * WIDTH + column / 4u)[column % 4u];
        g[at] = select(0.0, g[at], p.accumulate == 1u) + p.scale * value;
    }
}
