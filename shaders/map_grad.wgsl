// dx = function'(x) dy; functions as in map.
struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> dy: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

fn result(e: u32) -> f32 {
    let number = decode(X, x[word_of(X, e)], e);
    let upstream = decode(DY, dy[word_of(DY, e)], e);
{%- if FUNCTION == 0 %}
    return upstream * exp(number);
{%- elif FUNCTION == 1 %}
    return -upstream / (2.0 * number * sqrt(number));
{%- elif FUNCTION == 2 %}
    return select(select(0.0, -upstream, number < 0.0), upstream, number > 0.0);
{%- elif FUNCTION == 3 %}
    return select(0.0, upstream, number > 0.0);
{%- else %}
    return 0.0;
{%- endif %}
}
