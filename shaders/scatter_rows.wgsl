// y[rows[i]] = x[i] where the row is among the bound rows [first, last) of y; rows have an even width where Y has 16 bits.
struct Params {
    n: u32,
    width: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
@group(0) @binding(2) var<storage, read> rows: array<u32>;
{{- written("y", 3) }}

// The place in y of part i of x, for rows of `width` parts.
fn place(i: u32, width: u32) -> u32 {
    return (rows[i / width] - p.first) * width + i % width;
}

fn outside(row: u32) -> bool {
    return row < p.first || row >= p.last;
}

fn result(x: f32) -> f32 {
    return x;
}
{%- set STEP = VECTORS or (2 if Y else 1) %}
{%- set Y_STEP = "place(i, p.width / " ~ STEP ~ "u)" %}
{{ elementwise([["x", X]], [["y", Y, Y_STEP]], "outside(rows[" ~ STEP ~ "u * i / p.width])") }}
