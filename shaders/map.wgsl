// y = function(x): 0 exp, 1 1 / sqrt, 2 abs, 3 relu, 4 round, 5 step.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    let number = decode(X, x[word_of(X, e)], e);
{%- if FUNCTION == 0 %}
    return exp(number);
{%- elif FUNCTION == 1 %}
    return 1.0 / sqrt(number);
{%- elif FUNCTION == 2 %}
    return abs(number);
{%- elif FUNCTION == 3 %}
    return select(number, 0.0, number < 0.0);
{%- elif FUNCTION == 4 %}
    return round(number);
{%- else %}
    return select(0.0, 1.0, number > 0.0);
{%- endif %}
}
