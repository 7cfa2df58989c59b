{#- What the two gradient kernels of attention share; after attention_tile. -#}
@group(0) @binding(6) var<storage, read_write> ld: array<f32>;
{{- operand("d_o", 5, "heads") }}

// (log-sum-exp, o . do) of a query row; of the last row where t is past it.
fn terms(t: u32, head: u32) -> vec2<f32> {
    let at = 2u * (min(t, p.rows - 1u) * p.heads + head);
    return vec2<f32>(ld[at], ld[at + 1u]);
}

// (probability with dropout, gradient of the unscaled score) of one element, from its products q.k and do.v.
fn element(product: f32, d_weight: f32, t: u32, j: u32, head: u32, start: u32, terms: vec2<f32>) -> vec2<f32> {
    let s = score(product);
    let probability = exp(s - terms.x);
    let mask = kept(j, t, head);
    let ds = p.scale * probability * (mask * d_weight - terms.y) * slope(s);
    return select(vec2<f32>(), vec2<f32>(mask * probability, ds), sees(t, j, start));
}
