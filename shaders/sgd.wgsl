// Gradient descent, in place; with STATE a momentum in `b`. clip = (norm, factor), where a negative factor stops the
// update; step = (learning rate, ...).
struct Params {
    n: u32,
    momentum: f32,
    weight_decay: f32,
    lr_factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- written("w", 1) }}
{{- bound("grad", 2) }}
@group(0) @binding(3) var<storage, read> clip: array<f32>;
@group(0) @binding(4) var<storage, read> step: array<f32>;
{{- bound("b", 5, "read_write" if STATE else "read") }}

fn direction(w: f32, grad: f32) -> f32 {
    return clip[1] * grad + p.weight_decay * w;
}

fn moved(w: f32, along: f32) -> f32 {
    return w - p.lr_factor * step[0] * along;
}
{%- if STATE %}

fn result(w: f32, grad: f32, b: f32) -> vec2<f32> {
    let along = p.momentum * b + direction(w, grad);
    return vec2<f32>(moved(w, along), along);
}
{{ elementwise([["w", 0], ["grad", 0], ["b", 0]], [["w", 0], ["b", 0]], "clip[1] < 0.0") }}
{%- else %}

fn result(w: f32, grad: f32) -> f32 {
    return moved(w, direction(w, grad));
}
{{ elementwise([["w", 0], ["grad", 0]], [["w", 0]], "clip[1] < 0.0") }}
{%- endif %}
