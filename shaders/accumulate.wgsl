// y += x
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- written("y", 1) }}
{{- bound("x", 2) }}

fn result(y: f32, x: f32) -> f32 {
    return y + x;
}
{{ elementwise([["y", Y], ["x", X]], [["y", Y]]) }}
