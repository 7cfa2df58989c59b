// y = dy * (1 - tanh(x / cap)^2)
struct Params {
    n: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- bound("dy", 2) }}
{{- written("y", 3) }}

fn result(x: f32, dy: f32) -> f32 {
    let t = safe_tanh(x / p.cap);
    return dy * (1.0 - t * t);
}
{{ elementwise([["x", X], ["dy", X]], [["y", Y]]) }}
