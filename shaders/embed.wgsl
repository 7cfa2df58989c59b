// y[t] = scale * table[tokens[t]] where the token is among the bound rows [first, last) of the table; rows have an even width
// where Y has 16 bits. Also select_rows.
struct Params {
    n: u32,
    width: u32,
    first: u32,
    last: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("table", 1) }}
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
{{- written("y", 3) }}

// The place in the table of part i of y, for rows of `width` parts.
fn source(i: u32, width: u32) -> u32 {
    return (tokens[i / width] - p.first) * width + i % width;
}

fn outside(token: u32) -> bool {
    return token < p.first || token >= p.last;
}

fn result(x: f32) -> f32 {
    return p.scale * x;
}
{%- set STEP = VECTORS or (2 if Y else 1) %}
{%- set TABLE_STEP = "source(i, p.width / " ~ STEP ~ "u)" %}
{{ elementwise([["table", TABLE, TABLE_STEP, "source(e, p.width)"]], [["y", Y]], "outside(tokens[" ~ STEP ~ "u * i / p.width])") }}
