// A block of columns of a matrix, copied out of it or with JOIN into it. Sizes are in words, or in vectors of four.
struct Params {
    n: u32,
    width: u32,
    stride: u32,
    begin: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("matrix", 1, "read_write" if JOIN else "read") }}
{{- bound("block", 2, "read" if JOIN else "read_write") }}

{% call each("thread", "i", "i >= p.n") %}
    let at = i / p.width * p.stride + p.begin + i % p.width;
    {{ "matrix[at] = block[i];" if JOIN else "block[i] = matrix[at];" }}
{% endcall %}
