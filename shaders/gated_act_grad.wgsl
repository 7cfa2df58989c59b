// dgate = dy * up * act'(gate), dup = dy * act(gate), all of type X.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("gate", 1) }}
{{- bound("up", 2) }}
{{- bound("dy", 3) }}
{{- written("dgate", 4) }}
{{- written("dup", 5) }}

// dgate and dup.
fn result(gate: f32, up: f32, dy: f32) -> vec2<f32> {
    let act = activate(gate);
    return vec2<f32>(dy * up * act.y, dy * act.x);
}
{{ elementwise([["gate", X], ["up", X], ["dy", X]], [["dgate", X], ["dup", X]]) }}
