// linear from the products of pieces of k, which are added in order; one thread per four columns.
@group(0) @binding(1) var<storage, read> partial: array<vec4<f32>>;

{% call each("thread", "i", "i >= p.m * ((p.n + 3u) / 4u)") %}
    let width = (p.n + 3u) / 4u;
    var sum = vec4<f32>();
    for (var piece = 0u; piece < p.pieces; piece++) {
        sum += partial[piece * p.m * width + i];
    }
    put(i / width, 4u * (i % width), sum);
{% endcall %}
