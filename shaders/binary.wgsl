// Comes before elementwise kernels of two operands, which define `result`. BROADCAST 1: b is a row that is combined
// with every row of a; 2: a column, which is bound by words.
struct Params {
    n: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("a", 1) }}
{%- if BROADCAST == 2 %}
@group(0) @binding(2) var<storage, read> b: array<u32>;

// What elements 4 `at` to 4 `at` + 3 of a row are combined with.
fn column(at: u32) -> vec4<f32> {
    let row = 4u * at / p.width;
    return vec4<f32>({{ one("b", B, "row") }});
}
{%- else %}
{{- bound("b", 2) }}
{%- endif %}
{{- written("y", 3) }}
{%- set STEP = ["i", "i % (p.width / " ~ VECTORS ~ "u)", ""][BROADCAST] %}
{%- set ELEMENT = ["e", "e % p.width", "e / p.width"][BROADCAST] %}
{%- set B_OF = ["b", "column"] if BROADCAST == 2 and VECTORS else ["b", B, STEP, ELEMENT] %}
{{ elementwise([["a", A], B_OF], [["y", Y]]) }}
