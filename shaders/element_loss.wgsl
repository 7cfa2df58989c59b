// The sum over each row of a loss of single elements, `term(x, label)`; one workgroup per row. NaN labels do not count.
struct Params {
    rows: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

{% call each("workgroup", "row", "row >= p.rows") %}
    var sum = 0.0;
    for (var c = lane; c < p.columns; c += LANES) {
        let i = row * p.columns + c;
        if (!is_nan(labels[i])) {
            sum += term(x[i], bitcast<f32>(labels[i]));
        }
    }
    sum = sum_lanes(lane, sum);
    if (lane == 0u) {
        losses[row] = sum;
    }
{% endcall %}
