// dx = function'(x) dy; functions as in map.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- bound("dy", 2) }}
{{- written("y", 3) }}

fn result(x: f32, dy: f32) -> f32 {
{%- if FUNCTION == 0 %}
    return dy * exp(x);
{%- elif FUNCTION == 1 %}
    return -dy / (2.0 * x * sqrt(x));
{%- elif FUNCTION == 2 %}
    return select(select(0.0, -dy, x < 0.0), dy, x > 0.0);
{%- elif FUNCTION == 3 %}
    return select(0.0, dy, x > 0.0);
{%- else %}
    return 0.0;
{%- endif %}
}
{{ elementwise([["x", X], ["dy", DY]], [["y", Y]]) }}
