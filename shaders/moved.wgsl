// Element (i, j) of y is element (i + top) * down + (j + left) * across of x, where it lies in the block [height, width] that
// begins at (i + top, j + left) = 0; elsewhere 0. `row` is the number of the first row bound. VECTORS also requires that rows
// of x and the block begin and end at whole steps, and that elements of a row are next to each other in x.
struct Params {
    n: u32,
    row: u32,
    columns: u32,
    top: i32,
    left: i32,
    height: u32,
    width: u32,
    down: u32,
    across: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- written("y", 2) }}

const OUTSIDE: u32 = 0xffffffffu;

// The element of x that is element e of y.
fn source(e: u32) -> u32 {
    let i = i32(p.row + e / p.columns) + p.top;
    let j = i32(e % p.columns) + p.left;
    if (i < 0 || j < 0 || u32(i) >= p.height || u32(j) >= p.width) {
        return OUTSIDE;
    }
    return u32(i) * p.down + u32(j) * p.across;
}
{%- set STEP = VECTORS or (2 if Y else 1) %}

{% call each("thread", "i", STEP ~ "u * i >= p.n") %}
    {%- if VECTORS %}
        {%- for part in range(PARTS) %}
    var y{{ part }} = vec4<f32>();
        {%- endfor %}
    let at = source({{ VECTORS }}u * i);
    if (at != OUTSIDE) {
        {%- for part in range(PARTS) %}
        y{{ part }} = {{ four("x", X, "at / " ~ VECTORS ~ "u", part) }};
        {%- endfor %}
    }
        {{- put("y", Y, "i", "y") }}
    {%- else %}
    var word = 0u;
    for (var e = {{ STEP }}u * i; e < min({{ STEP }}u * (i + 1u), p.n); e++) {
        let at = source(e);
        if (at != OUTSIDE) {
            word = insert(Y, word, e, {{ one("x", X, "at") }});
        }
    }
    y[i] = word;
    {%- endif %}
{% endcall %}
