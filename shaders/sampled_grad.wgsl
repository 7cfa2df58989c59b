// g[i] = scale * sum over t of dy[t, r] x[t, c], index[i] = r * columns + c; one thread per chosen element.
struct Params {
    n: u32,
    rows: u32,
    out: u32,
    columns: u32,
    scale: f32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;
@group(0) @binding(3) var<storage, read> index: array<u32>;
@group(0) @binding(4) var<storage, read_write> g: array<f32>;

{% call each("thread", "i", "i >= p.n") %}
    let r = min(index[i] / p.columns, p.out - 1u);
    let c = index[i] % p.columns;
    var sum = 0.0;
    for (var t = 0u; t < p.rows; t++) {
        let source = vec2<u32>(t * p.out + r, t * p.columns + c);
        sum += decode(DY, dy[word_of(DY, source.x)], source.x) * decode(X, x[word_of(X, source.y)], source.y);
    }
    g[i] = select(0.0, g[i], p.accumulate == 1u) + p.scale * sum;
{% endcall %}
