// y = act(gate) * up, all of type X.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("gate", 1) }}
{{- bound("up", 2) }}
{{- written("y", 3) }}

fn result(gate: f32, up: f32) -> f32 {
    return activate(gate).x * up;
}
{{ elementwise([["gate", X], ["up", X]], [["y", X]]) }}
