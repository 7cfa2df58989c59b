// Comes before elementwise kernels of two operands, which define `result`. BROADCAST 1: b is a row that meets every row of a;
// 2: a column, and nothing is bound by vectors.
struct Params {
    n: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("a", 1) }}
{{- bound("b", 2) }}
{{- bound("y", 3) }}
{%- set STEP = ["i", "i % (p.width / " ~ VECTORS ~ "u)", ""][BROADCAST] %}
{%- set ELEMENT = ["e", "e % p.width", "e / p.width"][BROADCAST] %}
{{ elementwise([["a", A], ["b", B, STEP, ELEMENT]], [["y", Y]]) }}
