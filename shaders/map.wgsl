// y = function(x): 0 exp, 1 1 / sqrt, 2 abs, 3 relu, 4 round, 5 step.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- written("y", 2) }}

fn result(x: f32) -> f32 {
{%- if FUNCTION == 0 %}
    return exp(x);
{%- elif FUNCTION == 1 %}
    return 1.0 / sqrt(x);
{%- elif FUNCTION == 2 %}
    return abs(x);
{%- elif FUNCTION == 3 %}
    return select(x, 0.0, x < 0.0);
{%- elif FUNCTION == 4 %}
    return round(x);
{%- else %}
    return select(0.0, 1.0, x > 0.0);
{%- endif %}
}
{{ elementwise([["x", X]], [["y", Y]]) }}
