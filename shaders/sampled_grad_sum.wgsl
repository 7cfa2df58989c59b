// sampled_grad from the dense products of pieces of k, which are added in order; one thread per chosen element.
@group(0) @binding(1) var<storage, read> partial: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> g: array<f32>;

{% call each("thread", "i", "i >= p.last - p.first") %}
    let width = (p.n + 3u) / 4u * 4u;
    let at = min(index[i] / p.n, p.m - 1u) * width + index[i] % p.n;
    var sum = 0.0;
    for (var piece = 0u; piece < p.pieces; piece++) {
        sum += partial[piece * p.m * width + at];
    }
    g[i] = select(0.0, g[i], p.accumulate == 1u) + p.scale * sum;
{% endcall %}
