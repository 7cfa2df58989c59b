// dw = sum over norms of dy * x * rate, or over chunks of them. CHOSEN: 0 or 1, whether the columns are those at `index`; then
// nothing is bound by vectors.
struct Params {
    rows: u32,
    width: u32,
    accumulate: u32,
    chunk: u32,
    // The norm of the first row bound, in `rate`.
    first: u32,
    // Elements of dw.
    sums: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
{{- bound("dy", 2) }}
@group(0) @binding(3) var<storage, read> rate: array<f32>;
@group(0) @binding(4) var<storage, read> index: array<u32>;
@group(0) @binding(5) var<storage, read_write> dw: array<{{ NUMBERS }}>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    {{- columns("p.sums") }}
    var column = e;
    if (CHOSEN == 1u && e < steps) {
        column = index[e];
    }
    if (e < steps && column < p.width) {
        for (var t = chunk * p.chunk + lane / 32u; t < end; t += 8u) {
            let at = t * (p.width / {{ WIDE }}u) + column;
            let factor = rate[p.first + t];
            {%- if VECTORS %}
                {%- for part in range(PARTS) %}
            sum{{ part }} += factor * {{ four("dy", DY, "at", part) }} * {{ four("x", X, "at", part) }};
                {%- endfor %}
            {%- else %}
            sum0 += factor * {{ one("dy", DY, "at") }} * {{ one("x", X, "at") }};
            {%- endif %}
        }
    }
    {{- write("dw") }}
}
