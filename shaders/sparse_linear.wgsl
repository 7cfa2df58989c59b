// y[t, l] = sum over the elements i of line l of x[t, inner(i)] * values[i]; lines are the rows of a sparse matrix of
// `columns` columns, or with TRANSPOSED its columns. One thread per element of y.
struct Params {
    n: u32,
    width: u32,
    made: u32,
    columns: u32,
    elements: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> values: array<f32>;
@group(0) @binding(3) var<storage, read> index: array<u32>;
// Where each line begins.
@group(0) @binding(4) var<storage, read> starts: array<u32>;
// The elements by column.
@group(0) @binding(5) var<storage, read> order: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

{% call each("thread", "e", "e >= p.n") %}
    let row = e / p.made;
    let line = e % p.made;
    let end = min(starts[line + 1u], p.elements);
    var sum = 0.0;
    for (var k = starts[line]; k < end; k++) {
        var i = k;
        if (TRANSPOSED == 1u) {
            i = min(order[k], p.elements - 1u);
        }
        let inner = select(index[i] % p.columns, index[i] / p.columns, TRANSPOSED == 1u);
        let source = row * p.width + min(inner, p.width - 1u);
        sum += decode(X, x[word_of(X, source)], source) * values[i];
    }
    y[e] = sum;
{% endcall %}
