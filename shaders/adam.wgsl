// AdamW, in place. clip = (norm, factor), where a negative factor stops the update;
// step = (learning rate, bias correction 1, bias correction 2, ...).
struct Params {
    n: u32,
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

// w, m and v after the update.
fn result(w: f32, m: f32, v: f32, grad: f32) -> vec3<f32> {
    let g = clip[1] * grad;
    let m1 = p.beta1 * m + (1.0 - p.beta1) * g;
    let v1 = p.beta2 * v + (1.0 - p.beta2) * g * g;
    let update = (m1 / step[1]) / (sqrt(v1 / step[2]) + p.eps);
    let lr = p.lr_factor * step[0];
    return vec3<f32>(w - lr * p.weight_decay * w - lr * update, m1, v1);
}
{{ elementwise([["w", 0], ["m", 0], ["v", 0], ["grad", 0]], [["w", 0], ["m", 0], ["v", 0]], "clip[1] < 0.0") }}
