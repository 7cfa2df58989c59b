// Four elements share one Philox counter; `counter` is that of the first element bound.
struct Params {
    n: u32,
    counter: u32,
    salt: u32,
    threshold: u32,
    keep: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- written("y", 2) }}
@group(0) @binding(9) var<uniform> rng: vec4<u32>;

fn draws(at: u32) -> vec4<u32> {
    return philox(rng.xy, vec4<u32>(p.counter + at, p.salt, 0u, 0u));
}

fn result(x: f32, draw: u32) -> f32 {
    return select(p.keep * x, 0.0, draw < p.threshold);
}
{{ elementwise([["x", X], ["draw", "draws"]], [["y", X]]) }}
