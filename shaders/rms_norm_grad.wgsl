// dx = r (g - x r^2 mean(g x)) + acc with g = dy * (offset + w); one workgroup per norm, of even width where Y, the type of
// dx, has 16 bits.
struct Params {
    norms: u32,
    width: u32,
    eps: f32,
    offset: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- bound("w", 2) }}
{{- bound("dy", 3) }}
{{- bound("acc", 4) }}
{{- written("dx", 5) }}

{% call each("workgroup", "norm", "norm >= p.norms") %}
    {%- set STEP = VECTORS or (2 if Y else 1) %}
    let steps = p.width / {{ STEP }}u;
    let base = norm * p.width{{ " / " ~ VECTORS ~ "u" if VECTORS }};
    var squares = 0.0;
    var products = 0.0;
    {%- if VECTORS %}
    for (var i = lane; i < steps; i += LANES) {
        {%- for part in range(PARTS) %}
        let x{{ part }} = {{ four("x", X, "base + i", part) }};
        let square{{ part }} = x{{ part }} * x{{ part }};
        let product{{ part }} = {{ four("dy", DY, "base + i", part) }} * (p.offset + {{ four("w", W, "i", part) }}) * x{{ part }};
        squares += (square{{ part }}.x + square{{ part }}.y) + (square{{ part }}.z + square{{ part }}.w);
        products += (product{{ part }}.x + product{{ part }}.y) + (product{{ part }}.z + product{{ part }}.w);
        {%- endfor %}
    }
    {%- else %}
    for (var i = lane; i < p.width; i += LANES) {
        let number = {{ one("x", X, "(base + i)") }};
        squares += number * number;
        products += {{ one("dy", DY, "(base + i)") }} * (p.offset + {{ one("w", W, "i") }}) * number;
    }
    {%- endif %}
    let r = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.width) + p.eps);
    let shift = r * r * sum_lanes(lane, products) / f32(p.width);
    for (var i = lane; i < steps; i += LANES) {
    {%- if VECTORS %}
        {%- for part in range(PARTS) %}
        let weight{{ part }} = p.offset + {{ four("w", W, "i", part) }};
        let dx{{ part }} = {{ four("acc", X, "base + i", part) ~ " + " if ACC }}r * ({{ four("dy", DY, "base + i", part) }} * weight{{ part }} - {{ four("x", X, "base + i", part) }} * shift);
        {%- endfor %}
        {{- put("dx", Y, "base + i", "dx") }}
    {%- else %}
        var word = 0u;
        for (var e = {{ STEP }}u * i; e < {{ STEP }}u * (i + 1u); e++) {
            let weight = p.offset + {{ one("w", W, "e") }};
            let at = base + e;
            word = insert(Y, word, e, {{ one("acc", X, "at") ~ " + " if ACC }}r * ({{ one("dy", DY, "at") }} * weight - {{ one("x", X, "at") }} * shift));
        }
        dx[base / {{ STEP }}u + i] = word;
    {%- endif %}
    }
{% endcall %}
