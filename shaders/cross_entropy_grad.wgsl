// dlogits = d_loss * step[LOSS_WEIGHT] * (softmax - one_hot), times the slope of the soft cap where CAP is 1; zero in
// ignored rows. One workgroup per row.
struct Params {
    rows: u32,
    classes: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<{{ NUMBERS }}>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> step: array<f32>;
@group(0) @binding(5) var<storage, read> d_loss: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlogits: array<{{ NUMBERS }}>;

// The gradient for class i of a row, without the loss's factor.
fn gradient(x: f32, i: u32, label: u32, log_sum: f32) -> f32 {
    if (label == IGNORED) {
        return 0.0;
    }
    var logit = x;
    var slope = 1.0;
    if (CAP == 1u) {
        let t = safe_tanh(x / p.cap);
        logit = p.cap * t;
        slope = 1.0 - t * t;
    }
    return (exp(logit - log_sum) - select(0.0, 1.0, label == i)) * slope;
}

{% call each("workgroup", "row", "row >= p.rows") %}
    {%- set STEP = VECTORS or 1 %}
    let steps = p.classes / {{ STEP }}u;
    let label = labels[row];
    let log_sum = lse[row];
    let factor = d_loss[0] * step[3];
    for (var i = lane; i < steps; i += LANES) {
        let x = logits[row * steps + i];
        {%- for e in EACH %}
        let g{{ loop.index0 }} = factor * gradient(x{{ e }}, {{ STEP }}u * i + {{ loop.index0 }}u, label, log_sum);
        {%- endfor %}
        dlogits[row * steps + i] = {{ NUMBERS }}({% for e in EACH %}g{{ loop.index0 }}{{ ", " if not loop.last }}{% endfor %});
    }
{% endcall %}
