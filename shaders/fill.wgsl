// y = value
struct Params {
    n: u32,
    value: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- written("y", 1) }}

fn result() -> f32 {
    return p.value;
}
{{ elementwise([], [["y", Y]]) }}
