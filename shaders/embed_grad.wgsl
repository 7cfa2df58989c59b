// dtable[v] += scale * sum of dy[t] over tokens[t] == v, for the bound rows [first, last) of the table; one workgroup
// per row of dy, of which the first with a token adds all rows with that token, in order. Rows of `width` steps.
struct Params {
    rows: u32,
    width: u32,
    first: u32,
    last: u32,
    padding: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<{{ NUMBERS }}>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> dtable: array<{{ NUMBERS }}>;

{% call each("workgroup", "row", "row >= p.rows") %}
    let token = tokens[row];
    if (token < p.first || token >= p.last || token == p.padding) {
        return;
    }
    for (var t = 0u; t < row; t++) {
        if (tokens[t] == token) {
            return;
        }
    }
    let base = (token - p.first) * p.width;
    for (var t = row; t < p.rows; t++) {
        if (tokens[t] == token) {
            for (var i = lane; i < p.width; i += LANES) {
                dtable[base + i] += p.scale * dy[t * p.width + i];
            }
        }
    }
{% endcall %}
