// y[i] = x[index[i]] where the index is among the bound elements [first, last) of x; both of type X, one thread per word of
// y.
struct Params {
    n: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

const PER_WORD: u32 = 1u + min(X, 1u);

{% call each("thread", "i", "PER_WORD * i >= p.n") %}
    // Another dispatch may have written the other half.
    var word = y[i];
    for (var e = PER_WORD * i; e < min(PER_WORD * (i + 1u), p.n); e++) {
        if (index[e] >= p.first && index[e] < p.last) {
            let source = index[e] - p.first;
            word = insert(X, word, e, decode(X, x[word_of(X, source)], source));
        }
    }
    y[i] = word;
{% endcall %}
