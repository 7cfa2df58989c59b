// y = s[0] * x
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
@group(0) @binding(2) var<storage, read> s: array<f32>;
{{- written("y", 3) }}

fn result(x: f32) -> f32 {
    return s[0] * x;
}
{{ elementwise([["x", X]], [["y", Y]]) }}
