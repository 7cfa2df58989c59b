// y = the sum of each row, a workgroup to a row.
struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

{% call each("workgroup", "row", "row >= p.rows") %}
    {%- set STEP = VECTORS or 1 %}
    let steps = p.width / {{ STEP }}u;
    var sum = 0.0;
    for (var i = row * steps + lane; i < (row + 1u) * steps; i += LANES) {
    {%- if VECTORS %}
        {%- for part in range(PARTS) %}
        let x{{ part }} = {{ four("x", X, "i", part) }};
        sum += (x{{ part }}.x + x{{ part }}.y) + (x{{ part }}.z + x{{ part }}.w);
        {%- endfor %}
    {%- else %}
        sum += {{ one("x", X, "i") }};
    {%- endif %}
    }
    let total = sum_lanes(lane, sum);
    if (lane == 0u) {
        y[row] = total;
    }
{% endcall %}
