// The gradient of a loss of single elements: d_loss * step[LOSS_WEIGHT] * `derivative(x, label)`, zero where the label is
// NaN.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> step: array<f32>;
@group(0) @binding(4) var<storage, read> d_loss: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

{% call each("thread", "i", "i >= p.n") %}
    if (is_nan(labels[i])) {
        dx[i] = 0.0;
        return;
    }
    dx[i] = d_loss[0] * step[3] * derivative(x[i], bitcast<f32>(labels[i]));
{% endcall %}
