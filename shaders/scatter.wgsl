// w[index[i]] = round(base[i] + delta[i]) where the index is among the bound elements [first, last) of w; with REMAINDER also
// remainder[i], what the rounding lost.
// Two neighbours in one 16-bit pair are written by the thread of the first.
struct Params {
    n: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> w: array<u32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read> base: array<u32>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, {{ "read_write" if REMAINDER else "read" }}> remainder: array<f32>;

fn value(i: u32) -> f32 {
    return decode(BASE, base[word_of(BASE, i)], i) + delta[i];
}

{% call each("thread", "i", "i >= p.n") %}
    let e = index[i];
    if (e < p.first || e >= p.last) {
        return;
    }
    {%- if REMAINDER %}
    remainder[i] = value(i) - decode(W, insert(W, 0u, e, value(i)), e);
    {%- endif %}
    if (W == F32) {
        w[e - p.first] = bitcast<u32>(value(i));
        return;
    }
    let pair = e >> 1u;
    if (i > 0u && (index[i - 1u] >> 1u) == pair) {
        return;
    }
    let at = (e - p.first) >> 1u;
    var word = insert(W, w[at], e, value(i));
    if (i + 1u < p.n && (index[i + 1u] >> 1u) == pair) {
        word = insert(W, word, index[i + 1u], value(i + 1u));
    }
    w[at] = word;
{% endcall %}
