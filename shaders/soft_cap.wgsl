// y = cap * tanh(x / cap)
struct Params {
    n: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- written("y", 2) }}

fn result(x: f32) -> f32 {
    return p.cap * safe_tanh(x / p.cap);
}
{{ elementwise([["x", X]], [["y", Y]]) }}
