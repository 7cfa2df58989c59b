// y = factor * x
struct Params {
    n: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- written("y", 2) }}

fn result(x: f32) -> f32 {
    return p.factor * x;
}
{{ elementwise([["x", X]], [["y", Y]]) }}
