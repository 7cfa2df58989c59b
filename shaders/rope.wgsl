{#- VECTORS also requires that both halves of the pairs, and heads, are made of whole steps. -#}
// Rotation of the pairs (i, i + rotated / 2) of each head. `row` is the number of the first row bound.
struct Params {
    n: u32,
    row: u32,
    width: u32,
    head_dim: u32,
    rotated: u32,
    positions: u32,
    direction: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
@group(0) @binding(2) var<storage, read> spans: array<u32>;
// Rows of cosines and sines.
@group(0) @binding(3) var<storage, read> table: array<{{ "vec4<f32>" if VECTORS else "f32" }}>;
{{- written("y", 4) }}
{%- set STEP = VECTORS or (2 if Y else 1) %}

// The element of the table for element d of a head in row t.
fn table_at(t: u32, d: u32) -> u32 {
    let half = p.rotated / 2u;
    let position = min(p.row + t - spans[2u * t], p.positions - 1u);
    return position * p.rotated + select(d, d - half, d >= half);
}

{% call each("thread", "i", STEP ~ "u * i >= p.n") %}
    let half = p.rotated / 2u;
    {%- if VECTORS %}
    let d = {{ VECTORS }}u * i % p.head_dim;
        {%- for part in range(PARTS) %}
    var y{{ part }} = {{ four("x", X, "i", part) }};
        {%- endfor %}
    if (d < p.rotated) {
        let second = d >= half;
        let partner = select(i + half / {{ VECTORS }}u, i - half / {{ VECTORS }}u, second);
        let sign = select(-p.direction, p.direction, second);
        let at = table_at({{ VECTORS }}u * i / p.width, d) / 4u;
        {%- for part in range(PARTS) %}
        y{{ part }} = y{{ part }} * table[at + {{ part }}u] + {{ four("x", X, "partner", part) }} * (sign * table[at + half / 4u + {{ part }}u]);
        {%- endfor %}
    }
        {{- put("y", Y, "i", "y") }}
    {%- else %}
    var word = 0u;
    for (var e = {{ STEP }}u * i; e < min({{ STEP }}u * (i + 1u), p.n); e++) {
        let d = e % p.head_dim;
        var number = {{ one("x", X, "e") }};
        if (d < p.rotated) {
            let second = d >= half;
            let partner = select(e + half, e - half, second);
            let sign = select(-p.direction, p.direction, second);
            let at = table_at(e / p.width, d);
            number = number * table[at] + {{ one("x", X, "partner") }} * (sign * table[at + half]);
        }
        word = insert(Y, word, e, number);
    }
    y[i] = word;
    {%- endif %}
{% endcall %}
