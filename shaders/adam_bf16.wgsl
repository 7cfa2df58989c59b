// AdamW with moments in bf16, rounded stochastically; in place. Four elements share one Philox counter; `counter` is
// that of the first element bound. clip and step as in adam.wgsl.
struct Params {
    n: u32,
    counter: u32,
    salt: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    lr_factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- written("w", 1) }}
{{- written("m", 2) }}
{{- written("v", 3) }}
{{- bound("grad", 4) }}
@group(0) @binding(5) var<storage, read> clip: array<f32>;
@group(0) @binding(6) var<storage, read> step: array<f32>;
@group(0) @binding(9) var<uniform> rng: vec4<u32>;

fn draws(at: u32) -> vec4<u32> {
    return philox(rng.xy, vec4<u32>(p.counter + at, p.salt, 1u, 0u));
}

// x as a bf16, rounded up with a probability equal to the part cut off; `random` has 16 bits.
fn rounded(x: f32, random: u32) -> f32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        return x;
    }
    return bitcast<f32>((bits + random) & 0xffff0000u);
}

// w, m and v after the update.
fn result(w: f32, m: f32, v: f32, grad: f32, random: u32) -> vec3<f32> {
    let g = clip[1] * grad;
    let m1 = p.beta1 * m + (1.0 - p.beta1) * g;
    let v1 = p.beta2 * v + (1.0 - p.beta2) * g * g;
    let update = (m1 / step[1]) / (sqrt(v1 / step[2]) + p.eps);
    let lr = p.lr_factor * step[0];
    return vec3<f32>(w - lr * p.weight_decay * w - lr * update, rounded(m1, random & 0xffffu), rounded(v1, random >> 16u));
}
{%- set INPUTS = [["w", 0], ["m", 1], ["v", 1], ["grad", 0], ["random", "draws"]] %}
{{ elementwise(INPUTS, [["w", 0], ["m", 1], ["v", 1]], "clip[1] < 0.0") }}
