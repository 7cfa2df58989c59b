// y = x r (offset + w) with r = 1 / sqrt(mean(x^2) + eps); one workgroup per norm, of even width where Y has 16 bits.
// RATE: 0 or 1, whether r is kept: at `first` and the following elements of `rate`.
struct Params {
    norms: u32,
    width: u32,
    eps: f32,
    offset: f32,
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- bound("w", 2) }}
{{- written("y", 3) }}
@group(0) @binding(4) var<storage, {{ "read_write" if RATE else "read" }}> rate: array<f32>;

{% call each("workgroup", "norm", "norm >= p.norms") %}
    {%- set STEP = VECTORS or (2 if Y else 1) %}
    let steps = p.width / {{ STEP }}u;
    let base = norm * p.width{{ " / " ~ VECTORS ~ "u" if VECTORS }};
    var squares = 0.0;
    {%- if VECTORS %}
    for (var i = lane; i < steps; i += LANES) {
        {%- for part in range(PARTS) %}
        let x{{ part }} = {{ four("x", X, "base + i", part) }};
        let square{{ part }} = x{{ part }} * x{{ part }};
        squares += (square{{ part }}.x + square{{ part }}.y) + (square{{ part }}.z + square{{ part }}.w);
        {%- endfor %}
    }
    {%- else %}
    for (var i = lane; i < p.width; i += LANES) {
        let number = {{ one("x", X, "(base + i)") }};
        squares += number * number;
    }
    {%- endif %}
    let r = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.width) + p.eps);
    {%- if RATE %}
    if (lane == 0u) {
        rate[p.first + norm] = r;
    }
    {%- endif %}
    for (var i = lane; i < steps; i += LANES) {
    {%- if VECTORS %}
        {%- for part in range(PARTS) %}
        let y{{ part }} = {{ four("x", X, "base + i", part) }} * r * (p.offset + {{ four("w", W, "i", part) }});
        {%- endfor %}
        {{- put("y", Y, "base + i", "y") }}
    {%- else %}
        var word = 0u;
        for (var e = {{ STEP }}u * i; e < {{ STEP }}u * (i + 1u); e++) {
            word = insert(Y, word, e, {{ one("x", X, "(base + e)") }} * r * (p.offset + {{ one("w", W, "e") }}));
        }
        y[base / {{ STEP }}u + i] = word;
    {%- endif %}
    }
{% endcall %}
