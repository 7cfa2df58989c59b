// The sum of all rows, or of chunks of them.
struct Params {
    rows: u32,
    width: u32,
    accumulate: u32,
    chunk: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
{{- bound("x", 1) }}
@group(0) @binding(2) var<storage, read_write> y: array<{{ NUMBERS }}>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    {{- columns("p.width") }}
    if (e < steps) {
        for (var t = chunk * p.chunk + lane / 32u; t < end; t += 8u) {
            let at = t * steps + e;
            {%- if VECTORS %}
                {%- for part in range(PARTS) %}
            sum{{ part }} += {{ four("x", X, "at", part) }};
                {%- endfor %}
            {%- else %}
            sum0 += {{ one("x", X, "at") }};
            {%- endif %}
        }
    }
    {{- write("y") }}
}
