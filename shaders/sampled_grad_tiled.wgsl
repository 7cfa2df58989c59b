// g[i] = scale * sum over t of dy[t, r] x[t, c], index[i] = r * columns + c: the dense product (TN) in tiles, of which only
// the chosen elements are written. The elements [first, last) of index and g are bound.
@group(0) @binding(3) var<storage, read> index: array<u32>;
@group(0) @binding(4) var<storage, read> row_ptr: array<u32>;
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
// The first chosen element of each row of the tile. All rows are searched at the same time, since each step of a search
// waits for memory.
var<workgroup> found: array<u32, TILE>;

fn begin_tile(m: u32, n: u32, lane: u32) {
    for (var row = m + lane; row < min(m + TILE, p.m); row += LANES) {
        found[row - m] = search(row, n);
    }
}

fn first_chosen(row: u32, n: u32) -> u32 {
    return found[row % TILE];
}
{%- else -%}
// There is no workgroup memory left to remember them.
fn begin_tile(m: u32, n: u32, lane: u32) {}

fn first_chosen(row: u32, n: u32) -> u32 {
    return search(row, n);
}
{%- endif %}

fn write_block(piece: u32, m: u32, n: u32, block: u32, writer: u32) {
    // Threads of a row.
    let crew = max(WRITERS / ROWS, 1u);
    for (var r = writer / crew; r < min(ROWS, p.m - min(m, p.m)); r += WRITERS / crew) {
        let end = clamp(row_ptr[m + r + 1u], p.first, p.last);
        let wanted = (m + r) * p.n + n;
        for (var i = first_chosen(m + r, n) + writer % crew; i < end; i += crew) {
            let at = i - p.first;
            let e = index[at];
            if (e >= wanted + 4u * WIDTH) {
                break;
            }
            if (e >= wanted) {
                let column = e - wanted;
                let value = sums_at(block, r, column / 4u)[column % 4u];
                g[at] = select(0.0, g[at], p.accumulate == 1u) + p.scale * value;
            }
        }
    }
}
